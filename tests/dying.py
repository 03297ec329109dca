"""Runs a program until it has a checkpoint of STEP in FOLDER and is about to save the next one: there it kills itself (SIGKILL).

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

        save = Checkpointer.save

        def dying(self, step, *args, **kwargs):
            if str(self.directory) == str(Path(folder).resolve()) and step > int(last):
                self.wait()
                assert int(last) in self.steps
                os.kill(os.getpid(), signal.SIGKILL)
            return save(self, step, *args, **kwargs)

        Checkpointer.save = dying
        return importlib.import_module(program).main(argv)

    console.run(main, arguments)
