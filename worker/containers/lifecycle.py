"""Finds, creates, starts, stops and removes the containers of jobs. Every step is idempotent."""

from collections.abc import Iterable

from modelyard.contract.catalog.entries import Probe
from modelyard.contract.errors import ErrorCode, ErrorInfo, ModelyardError
from modelyard.contract.messages import DiscardContainer, HostCommand, Progress
from modelyard.contract.states import Phase
from modelyard.process.crash_points import crash_point
from worker.attempts.attempt import Attempt
from worker.containers.catalog_check import check_catalog_rules
from worker.containers.datasets import Datasets, mount_target, verify_mount
from worker.containers.error_logging import log_errors
from worker.containers.given_back import MemoryWatch
from worker.containers.health import ModelHealth
from worker.containers.images import Images
from worker.containers.local_content import LocalContentWatch
from worker.containers.planning import PlanRules, plan_container, spec_hash
from worker.containers.readiness import RepeatedProbe, while_running
from worker.containers.running import RunningContainers
from worker.devices.taints import Leaving
from worker.engine.labels import container_name
from worker.engine.plan import ContainerPlan
from worker.engine.protocol import (
    ContainerFacts,
    ContainerRuntime,
    NoSuchContainerError,
)
from worker.engine.strict_containers import stop_all, strict_containers
from worker.model_server.client import ModelServer
from worker.model_server.probes import ProbeVerdict
from worker.model_server.profiles import dialogue_of

LEASE_LOST = (
    "The worker of the container's host lost its lease and stopped the container, because the "
    "dispatcher may then give the job to another host."
)
HALT_S = 8.0
"""Seconds for stopping all containers that must not outlive the lease."""


class ContainerLifecycle:
    """The steps of verbs that concern containers. Only this host's own containers are touched.

    Its own containers have its labels, and the name that follows from these labels.
    """

    def __init__(
        self,
        runtime: ContainerRuntime,
        images: Images,
        datasets: Datasets,
        server: ModelServer,
        rules: PlanRules,
        memory: MemoryWatch,
    ) -> None:
        self._runtime = runtime
        self._images = images
        self._datasets = datasets
        self._server = server
        self._rules = rules
        self.health = ModelHealth()
        """What this process knows of the models in the containers."""
        self.meter = memory.meter
        """What the models in the containers take."""
        self.taints = memory.taints
        self.given_back = memory.given_back
        self.running = RunningContainers(runtime)
        self.local_content = LocalContentWatch(images, datasets)
        """What this host has at hand for new containers."""

    async def find(self, command: HostCommand) -> ContainerFacts | None:
        """Return the container of the command's generation; None if there is none of ours."""
        try:
            facts = await self._runtime.inspect(self._name(command))
        except NoSuchContainerError:
            return None
        labels = facts.labels
        ours = labels is not None and labels.host_id == self._rules.host_id
        return facts if ours else None

    async def require(self, command: HostCommand) -> ContainerFacts:
        """Return the container of the command's generation; raises `container_missing`."""
        facts = await self.find(command)
        if facts is None:
            raise ModelyardError(ErrorCode.CONTAINER_MISSING)
        return facts

    async def reach(self, command: HostCommand) -> ContainerFacts:
        """Return the container as `require` does, without asking the engine if it surely runs."""
        known = self.running.get(self._name(command))
        if known is not None:
            return known
        facts = await self.require(command)
        self.running.keep(facts)
        return facts

    def _name(self, command: HostCommand) -> str:
        return container_name(command.job_id, command.generation, self._rules.prefix)

    async def ensure(self, command: HostCommand, attempt: Attempt) -> ContainerFacts:
        """Return the job's container with its mounts checked; create it if it does not exist.

        Containers of lower generations are removed.
        """
        listed = await self.remove_generations(command.job_id, up_to=command.generation - 1)
        target = mount_target(command.dataset, command.model)
        known = of_generation(command.generation, listed)
        if known is not None and known.labels is not None:
            if known.labels.spec == spec_hash(command.model):
                if target is not None:
                    verify_mount(known, target)
                return known
            # It was created from another spec under the same generation: replace it.
            await self._remove(known)
        return await self._create(command, attempt)

    async def create_anew(self, command: HostCommand, attempt: Attempt) -> ContainerFacts:
        """Create the job's container; what there is of this or a lower generation is removed."""
        await self.remove_generations(command.job_id, up_to=command.generation)
        return await self._create(command, attempt)

    async def _create(self, command: HostCommand, attempt: Attempt) -> ContainerFacts:
        check_catalog_rules(command)
        mount = await self._datasets.locate(command.dataset, command.model)

        def on_pull() -> None:
            attempt.report(Phase.PULLING)

        def on_progress(progress: Progress) -> None:
            attempt.report(Phase.PULLING, progress)

        image = await self._images.ensure(command.model.image, on_pull, on_progress)
        attempt.report(Phase.CREATING)
        # If the network was pruned, the engine would only notice when the container starts.
        await self._runtime.ensure_network()
        plan = plan_container(command, mount, self._rules, image)
        await attempt.require_lease()
        crash_point("worker.before_create")
        created = await self._runtime.create(plan)
        crash_point("worker.after_create")
        facts = await self._runtime.inspect(created)
        if mount is not None:
            verify_mount(facts, mount.target, mount)
        await self._reject_links(plan, facts)
        return facts

    async def _reject_links(self, plan: ContainerPlan, facts: ContainerFacts) -> None:
        """Check that no mount's target lies behind a symbolic link of the image.

        Raises `create_failed`.
        """
        dataset = plan.dataset.target if plan.dataset else None
        for field, target in (("dataset_mount", dataset), ("result_file", plan.kept_folder)):
            link = await self._runtime.link_at(facts.id, target) if target else None
            if link is not None:
                raise ModelyardError(
                    ErrorCode.CREATE_FAILED,
                    f"{link} is a link in the image, and {field} would lie behind it, perhaps on "
                    f"another mount. Use the path that the link leads to as {field}.",
                )

    async def serve(
        self, command: HostCommand, facts: ContainerFacts, attempt: Attempt
    ) -> ContainerFacts:
        """Start the container unless it runs, and wait until its server answers alive."""
        facts = await self.start(command, facts, attempt)
        alive = dialogue_of(command.model).alive
        if alive is not None:
            await self.probe(facts, alive, command.model.start_timeout_s, "answer alive")
        return facts

    async def start(
        self, command: HostCommand, facts: ContainerFacts, attempt: Attempt
    ) -> ContainerFacts:
        """Start the container unless it runs; each start gives it another published port.

        The dataset is located and checked before each start: the engine resolves the mount's source
        at each start, and a folder under the roots may have become a link to somewhere else.
        """
        if facts.running:
            return facts
        mount = await self._datasets.locate(command.dataset, command.model)
        if mount is not None:
            verify_mount(facts, mount.target, mount)
        attempt.report(Phase.STARTING, container_id=facts.id)
        self.health.record_starting(facts.id)
        await attempt.require_lease()
        await self._runtime.start(facts.id)
        crash_point("worker.after_start")
        return await self._runtime.inspect(facts.id)

    async def probe(self, facts: ContainerFacts, asked: Probe, seconds: float, what: str) -> None:
        """Wait until the server answers yes; raises `not_ready`, `exited` or `oom_killed`."""
        probe = RepeatedProbe(self._server, facts, asked)
        waiting = probe.until({ProbeVerdict.YES}, seconds, what)
        await while_running(self._runtime, facts.id, waiting)

    async def remove_generations(
        self, job_id: str, *, up_to: int, grace_s: float = 0.0
    ) -> list[ContainerFacts]:
        """Remove the job's containers up to a generation; return all that it had."""
        listed = await self._runtime.list_own(job_id)
        outdated = [it for it in listed if it.labels and it.labels.generation <= up_to]
        for it in outdated:
            if it.running and grace_s:
                await self._stop(it, grace_s)
                crash_point("worker.stop.after_stop")
            await self._remove(it)
        return listed

    async def stop(self, facts: ContainerFacts, grace_s: float, *, at_once: bool = False) -> None:
        """Stop the container; raises `NoSuchContainerError`. Stopped already is success.

        Unless it has to be `at_once`, return once its memory is free, or its devices are tainted.
        """
        self.running.forget(facts.id)
        leaving = None if at_once else await self._leaving(facts)
        await self._runtime.stop(facts.id, grace_s)
        if leaving is not None:
            await self.taints.after_end(leaving)

    async def halt(self, facts: ContainerFacts, *, at_once: bool = False) -> None:
        """Stop the container without a grace period: what it has in memory is of no use.

        With `at_once` nobody looks whether its memory becomes free.
        """
        await self._stop(facts, 0.0, at_once=at_once)
        crash_point("worker.stop.after_halt")
        self.health.record_unloaded(facts.id)

    async def halt_strict(self) -> None:
        """Stop all containers that must not outlive the lease, without a grace period.

        An error is logged and not raised.
        """
        async with log_errors("lease.not_halted", HALT_S):
            found = await strict_containers(self._runtime)
            await stop_all((facts for facts in found if facts.running), self._halt_without_lease)

    async def _halt_without_lease(self, facts: ContainerFacts) -> None:
        await self.halt(facts, at_once=True)
        self.health.stop_causes[facts.id] = ErrorInfo.of(ErrorCode.EXITED, LEASE_LOST)

    async def discard(self, discard: DiscardContainer, *, grace_s: float) -> bool:
        """Stop and remove the container; return false if it is not the one that was meant.

        It must be this host's, and have the job and generation of `discard`. A container that is
        gone already is success.
        """
        try:
            facts = await self._runtime.inspect(discard.container_id)
        except NoSuchContainerError:
            return True
        labels = facts.labels
        if labels is None or (labels.host_id, labels.job_id, labels.generation) != (
            self._rules.host_id,
            discard.job_id,
            discard.generation,
        ):
            return False
        if facts.running:
            await self._stop(facts, grace_s)
            crash_point("worker.discard.after_stop")
        await self._remove(facts)
        return True

    async def finish_removal(self, container_id: str) -> None:
        """Remove a container that was listed as dead."""
        await self._remove_id(container_id)

    async def _remove(self, facts: ContainerFacts) -> None:
        """Remove a container; return once its memory is free, or its devices are tainted."""
        leaving = await self._leaving(facts)
        await self._remove_id(facts.id)
        if leaving is not None:
            await self.taints.after_end(leaving)

    async def _remove_id(self, container_id: str) -> None:
        crash_point("worker.before_remove")
        self.running.forget(container_id)
        await self._runtime.remove(container_id)
        crash_point("worker.after_remove")
        self.record_removed(container_id)

    async def _leaving(self, facts: ContainerFacts) -> Leaving | None:
        if not facts.running or not facts.devices:
            return None
        return await self.taints.before_end(facts.id, facts.labels.job_id if facts.labels else "")

    @property
    def known(self) -> frozenset[str]:
        """Ids of the containers of which this process remembers anything."""
        return self.health.known | self.meter.known

    def record_removed(self, container_id: str) -> None:
        """Forget a container that was removed."""
        self.health.record_removed(container_id)
        self.meter.record_removed(container_id)

    async def _stop(self, facts: ContainerFacts, grace_s: float, *, at_once: bool = False) -> None:
        try:
            await self.stop(facts, grace_s, at_once=at_once)
        except NoSuchContainerError:
            return  # gone already is success


def of_generation(generation: int, listed: Iterable[ContainerFacts]) -> ContainerFacts | None:
    """Return the container of a job's generation; one that a crash has left dead is none."""
    found = (it for it in listed if it.labels and it.labels.generation == generation)
    return next((it for it in found if not it.dead), None)
