"""Tasks to this machine's processes: longest first, any of them may die, and the same command continues.

The store is the only coordination. The driver says which tasks to do, and asks the store (``finished``) what is done;
workers are fresh Python processes that write to the store and send back a small status. Several drivers may work on
one store: hints in ``.working`` keep them from doing the same task twice, and nothing goes wrong where a hint lies.

A worker calls ``work(payload, root, control) -> status``:

- ``payload`` is the task's, ``root`` the store as a string, ``control`` a `Control`;
- it returns a small JSON dictionary, ``{"stopped": True}`` where it ended early because ``control.stopping`` was set;
- what it computes goes through the store, and doing it twice gives the same files;
- an exception is that task's failure and stops nothing else, except a full disk, which stops the sweep.
"""

from landscope.sweep.driver import sweep
from landscope.sweep.processes import Worker, pool
from landscope.sweep.tasks import Event, Failure, Outcome, Task
from landscope.sweep.worker import Control

__all__ = ["Control", "Event", "Failure", "Outcome", "Task", "Worker", "pool", "sweep"]
