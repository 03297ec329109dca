"""Runs a program that has a checkpoint of STEP in FOLDER until it is about to save the next one or to end, and kills it there.

    python tests/dying.py train FOLDER STEP ARGUMENTS...

A test that killed it from outside would have to be faster than it, which a busy machine does not promise.
"""

import importlib
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bert_jax import console

if __name__ == "__main__":
    program, folder, last, *arguments = sys.argv[1:]

    def main(argv):
        from bert_jax.training.checkpoint import Checkpointer

        save, close = Checkpointer.save, Checkpointer.close

        def die(self):
            if str(self.directory) == str(Path(folder).resolve()):
                self.wait()
                assert int(last) in self.steps
                os.kill(os.getpid(), signal.SIGKILL)

        def dying(self, step, *args, **kwargs):
            if step > int(last):
                die(self)
            return save(self, step, *args, **kwargs)

        def ending(self):  # fine-tuning saves no checkpoint of its last step
            die(self)
            close(self)

        Checkpointer.save, Checkpointer.close = dying, ending
        return importlib.import_module(program).main(argv)

    console.run(main, arguments)
