"""What this process has written: whoever keeps jobs or hosts in memory learns what is outdated."""

from collections.abc import Callable, Iterable

Listener = Callable[[Iterable[str]], None]


class Changes:
    """Tells listeners which jobs and hosts were written, after each write."""

    def __init__(self) -> None:
        self._of_jobs: list[Listener] = []
        self._of_hosts: list[Listener] = []

    def listen(self, *, jobs: Listener, hosts: Listener) -> Callable[[], None]:
        """Call `jobs` and `hosts` with the ids of what was written; return how to stop that.

        A job counts as written if one of its open operations was. They are called too if the write
        failed or was cancelled: it may have taken effect all the same.
        """
        self._of_jobs.append(jobs)
        self._of_hosts.append(hosts)

        def stop() -> None:
            self._of_jobs.remove(jobs)
            self._of_hosts.remove(hosts)

        return stop

    def written(self, *, jobs: Iterable[str | None] = (), hosts: Iterable[str] = ()) -> None:
        """Tell the listeners."""
        job_ids = [job_id for job_id in jobs if job_id is not None]
        host_ids = list(hosts)
        for listener in self._of_jobs if job_ids else ():
            listener(job_ids)
        for listener in self._of_hosts if host_ids else ():
            listener(host_ids)
