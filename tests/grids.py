"What workers measure in the tests of the runner: they look for it by its name."

import os
import signal
import time

LOSS = dict(random=3.0, fifo=3.2, sdss=2.5)
JOBS = [dict(user=user, seed=seed, policy=policy) for user in ("Ana", "Bo", "Cy") for seed in (0, 1) for policy in LOSS]
SHARED = ("user", "seed")


def loss_of(job) -> float:
    return LOSS[job["policy"]] + 0.2 * len(job["user"]) + 0.1 * job["seed"]


def losses(jobs):
    "A loss that the job's values determine."
    assert len({(job["user"], job["seed"]) for job in jobs}) == 1, "one stream a group"
    for job in jobs:
        yield dict(loss=loss_of(job))


def threads(jobs):
    "How many threads torch has, and a sum that depends on the order of its terms."
    import torch

    for job in jobs:
        values = torch.rand(400, 400, generator=torch.Generator().manual_seed(job["seed"]))
        yield dict(threads=torch.get_num_threads(), total=float((values @ values).sum()))


def slow(jobs):
    "Slow enough to be killed in the middle; says which process it was."
    for job in jobs:
        time.sleep(0.1)
        yield dict(loss=loss_of(job), process=os.getpid())


def fatal(jobs):
    "Bo's second job kills its process, as a system without memory does."
    for job in jobs:
        if job["user"] == "Bo" and job["policy"] == "fifo":
            os.kill(os.getpid(), signal.SIGKILL)
        yield dict(loss=loss_of(job))
