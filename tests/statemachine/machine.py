"""The state machine: what clients, operators and bad luck may do to a fleet, in any order."""

import asyncio
import gc
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    multiple,
    rule,
)

from modelyard.contract.states import Admission, Verb
from modelyard.contract.topology import HOSTS, JOBS, REPORTS
from modelyard.process.crash_points import CRASH_POINTS as ALL_CRASH_POINTS
from tests.statemachine.catalog import MODELS
from tests.statemachine.checks import seen, wrong_at_the_end, wrong_now, wrong_when_quiet
from tests.statemachine.loop import VirtualLoop
from tests.statemachine.members import Member
from tests.statemachine.virtual import virtual_machine
from tests.statemachine.world import JITTERS, SLOTS, Jitter, World

HEALED_WITHIN_S = 120.0
"""Seconds after everything was mended until everything must be in order."""
LOOK_EVERY_S = 1.7
STAYS_S = 15.0
"""Seconds for which it must stay in order then."""
A_REPORT_S = 5.0
"""Seconds within which what is just on its way arrives."""
LEADS_WITHIN_S = 1.4
"""Seconds within which a standby leads once the lease has ended."""
SHOWN = 120
"""Lines of the log that explain a failure."""

JOBS_OF_CLIENTS = ("j1", "j2", "j3", "j4")
"""More than there are slots: some wait for room."""
JOB_IDS = st.sampled_from(JOBS_OF_CLIENTS)
HOST_IDS = st.sampled_from(sorted(SLOTS))
MODEL_NAMES = st.sampled_from(sorted(MODELS))
DEPLOYED = st.sampled_from(
    ["steady", "recreated", "open", "http", "process", "fragile", "refusing"]
)
"""Models that get somewhere when they are created and loaded."""
ON_DEMAND = st.sampled_from(sorted(one.name for one in MODELS.values() if one.residency.on_demand))
TAKING_AWAY = st.sampled_from([Verb.TERMINATE, Verb.DEPLOY_UNLOAD, Verb.TEMP])
CRASH_POINTS = [one for one in ALL_CRASH_POINTS if not one.startswith("gateway.")]
ANY = st.integers(min_value=0, max_value=7)


class Fleet(RuleBasedStateMachine):
    """A fleet under everything that may happen to it."""

    keys: Bundle[str] = Bundle("keys")
    steps: ClassVar[int] = 0
    """Rules that were run, of all examples."""
    ends: ClassVar[dict[str, int]] = {}
    """Operations by verb, state and code, of all examples."""

    def __init__(self) -> None:
        super().__init__()
        gc.disable()  # what it finalizes, and when, would differ from run to run
        self.loop = VirtualLoop()
        asyncio.set_event_loop(self.loop)
        self.world: World
        self._virtual = virtual_machine(self.loop, self._crash_point)
        self.log = self._virtual.__enter__()

    def _crash_point(self, name: str) -> None:
        self.world.crash_point(name)

    @initialize(
        seed=st.integers(0, 1 << 16),
        dispatchers=st.integers(1, 2),
        jitter=st.sampled_from(JITTERS),
    )
    def begin(self, seed: int, dispatchers: int, jitter: Jitter) -> None:
        self.world = World(self.loop, seed, jitter)
        for _ in range(dispatchers):
            self.world.start_dispatcher()
        for host_id in SLOTS:
            self.world.start_worker(host_id)
        self._advance(2.0)

    # --- clients ---

    @rule(
        target=keys,
        job_id=JOB_IDS,
        verb=st.sampled_from(sorted(Verb)),
        model=MODEL_NAMES,
        timeout_s=st.sampled_from([None, None, None, 3.0, 15.0]),
        queue_timeout_s=st.sampled_from([None, None, None, None, 5.0]),
        priority=st.sampled_from([0, 0, 5]),
    )
    def submit(self, job_id: str, verb: Verb, model: str, **limits: Any) -> str:
        key = self.world.submit({**_request(job_id, verb, model), **limits})
        self._after(0.05)
        return key

    @rule(target=keys, job_id=JOB_IDS, model=DEPLOYED, infers=st.integers(0, 3))
    def submit_a_deployment(self, job_id: str, model: str, infers: int) -> Any:
        verbs = [Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD, *([Verb.INFER] * infers)]
        made = [self.world.submit(_request(job_id, verb, model)) for verb in verbs]
        self._after(0.05)
        return multiple(*made)

    @rule(target=keys, job_id=JOB_IDS, model=ON_DEMAND, infers=st.integers(1, 3))
    def submit_what_loads_by_itself(self, job_id: str, model: str, infers: int) -> Any:
        verbs = [Verb.DEPLOY_CREATE, *([Verb.INFER] * infers)]
        made = [self.world.submit(_request(job_id, verb, model)) for verb in verbs]
        self._after(0.05)
        return multiple(*made)

    @rule(target=keys, job_id=JOB_IDS, verbs=st.lists(TAKING_AWAY, min_size=1, max_size=3))
    def submit_what_takes_away(self, job_id: str, verbs: list[Verb]) -> Any:
        made = [self.world.submit(_request(job_id, verb, "batch")) for verb in verbs]
        self._after(0.05)
        return multiple(*made)

    @rule(key=keys, how=st.sampled_from(["again", "other payload", "retry"]))
    def ask_again(self, key: str, how: str) -> None:
        if how == "retry":
            self.world.retry(key)
        elif how == "again":
            request = self.world.asked[key]
            self.world.submit(request.model_dump(mode="json", exclude_defaults=True), key=key)
        else:
            self.world.publish(b'{"job_id": "j1", "operation_type": "TERMINATE"}', key)
        self._after(0.05)

    @rule(key=keys)
    def cancel(self, key: str) -> None:
        self.world.cancel(key)
        self._after(0.05)

    @rule(body=st.sampled_from([b"", b"{", b"[1]", b'{"job_id": "j1"}', b'{"requests": 1}']))
    def publish_nonsense(self, body: bytes) -> None:
        self.world.publish(body)
        self._after(0.05)

    # --- time ---

    @rule(seconds=st.sampled_from([0.1, 0.3, 1.0, 2.5]))
    def wait_a_moment(self, seconds: float) -> None:
        self._after(seconds)

    @rule(seconds=st.sampled_from([4.0, 8.0, 15.0]))
    def wait(self, seconds: float) -> None:
        self._after(seconds)

    @rule(seconds=st.sampled_from([25.0, 50.0, 65.0, 90.0]))
    def wait_long(self, seconds: float) -> None:
        self._after(seconds)

    # --- operators ---

    @rule(
        host_id=HOST_IDS,
        how=st.sampled_from(["cordon", "open", "drain", "drain and move"]),
        deadline_s=st.sampled_from([None, 5.0, 30.0]),
    )
    def tell_a_host(self, host_id: str, how: str, deadline_s: float | None) -> None:
        if how in {"cordon", "open"}:
            admission = Admission.CORDONED if how == "cordon" else Admission.OPEN
            self.world.admit(host_id, admission)
        else:
            self.world.drain(host_id, move=how == "drain and move", deadline_s=deadline_s)
        self._after(0.05)

    # --- processes ---

    @rule(index=ANY, how=st.sampled_from(["kill", "freeze", "cut", "reconnect"]))
    def break_a_process(self, index: int, how: str) -> None:
        if member := self._member(index):
            match how:
                case "kill":
                    self.world.kill(member)
                case "freeze":
                    self.world.freeze(member)
                case "cut":
                    self.world.cut(member)
                case _:
                    member.broker.cut()
        self._after(0.05)

    @rule(
        job_id=JOB_IDS,
        model=DEPLOYED,
        of_store_s=st.sampled_from([0.2, 0.6, 1.2]),
        of_engine_s=st.sampled_from([0.0, 0.1, 0.4]),
        seconds=st.sampled_from([0.3, 0.8, 1.5, 3.0]),
    )
    def overtake_the_leader(
        self, job_id: str, model: str, of_store_s: float, of_engine_s: float, seconds: float
    ) -> None:
        """Let a leader fall behind with a job's reports in hand, and another one lead."""
        for slow_s in self.world.slow_s.values():
            slow_s[0] = of_engine_s
        self._have_a_standby()
        for verb in (Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD, Verb.INFER):
            self.world.submit(_request(job_id, verb, model))
        behind = self.world.leading_dispatcher()
        if behind is not None and behind.store is not None:
            behind.store.link.slow_s = of_store_s
        self._advance(seconds)
        self.world.end_the_lease()
        self._advance(LEADS_WITHIN_S)
        if behind is not None:
            behind.broker.cut()
        self._after(1.0)

    @rule(job_id=JOB_IDS, model=DEPLOYED, seconds=st.sampled_from([0.0, 0.05, 0.3, 1.0]))
    def have_another_dispatcher_lead(self, job_id: str, model: str, seconds: float) -> None:
        """Let one lead while the former leader is in the middle of something."""
        self._have_a_standby()
        self.world.end_the_lease()
        self._advance(seconds)
        for verb in (Verb.TEMP, Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD, Verb.INFER):
            self.world.submit(_request(job_id, verb, model))
        self._after(LEADS_WITHIN_S)

    @rule(index=ANY)
    def mend_a_process(self, index: int) -> None:
        """Thaw or join one that is frozen or cut off; else start what does not run."""
        broken = [one for one in self.world.members if one.frozen or not one.broker.link.up]
        missing = sorted(SLOTS.keys() - self.world.workers.keys())
        if broken:
            member = broken[index % len(broken)]
            self.world.join(member)
            self.world.thaw(member)
        elif missing:
            self.world.start_worker(missing[index % len(missing)])
        elif len(self.world.dispatchers) < 2:
            self.world.start_dispatcher()
        self._after(0.05)

    @rule(index=ANY, seconds=st.sampled_from([0.0, 0.1, 0.5, 1.2]), of_store=st.booleans())
    def slow_a_process(self, index: int, seconds: float, *, of_store: bool) -> None:
        """Let each of its messages take so long: what it does next is late."""
        if member := self._member(index):
            store = member.store
            link = store.link if store is not None and of_store else member.broker.link
            link.slow_s = seconds
        self._after(0.05)

    @rule(
        point=st.sampled_from(sorted(CRASH_POINTS)),
        freezes=st.sampled_from([False, False, True]),
        job_id=JOB_IDS,
        model=DEPLOYED,
        ends=st.booleans(),
    )
    def stop_a_process_at(
        self, point: str, job_id: str, model: str, *, freezes: bool, ends: bool
    ) -> None:
        """Let die, or freeze, whoever comes to this point next; and give it a reason to."""
        self.world.traps[point] = freezes
        verbs = [Verb.TEMP, Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD, Verb.INFER]
        for verb in [*verbs, Verb.TERMINATE] if ends else verbs:
            self.world.submit(_request(job_id, verb, model))
        self._after(2.5)

    # --- servers and the ways to them ---

    @rule(what=st.sampled_from(["store", "broker"]))
    def take_a_server_away_or_bring_it_back(self, what: str) -> None:
        if what == "store":
            self.world.set_store(up=not self.world.store_up)
        else:
            self.world.set_broker(up=not self.world.broker_up)
        self._after(0.05)

    @rule(
        index=ANY,
        calls=st.integers(0, 6),
        fate=st.sampled_from(["lost_before", "lost_after"]),
        of_store=st.booleans(),
    )
    def lose_a_call(self, index: int, calls: int, fate: Any, *, of_store: bool) -> None:
        """One call of a process fails, some calls from now."""
        if member := self._member(index):
            store = member.store
            link = store.link if store is not None and of_store else member.broker.link
            link.fates.extend([None] * calls)
            link.fates.append(fate)
        self._after(0.05)

    @rule(exchange=st.sampled_from([JOBS, HOSTS, REPORTS, REPORTS]), index=st.integers(0, 29))
    def bring_a_message_again(self, exchange: Any, index: int) -> None:
        self.world.again(exchange.name, index)
        self._after(0.05)

    @rule()
    def mend_everything(self) -> None:
        self.world.heal()
        self._after(0.05)

    # --- hosts ---

    @rule(host_id=HOST_IDS, index=ANY, how=st.sampled_from(["exit", "oom", "remove"]))
    def end_a_container(self, host_id: str, index: int, how: str) -> None:
        containers = self.world.containers(host_id)
        if containers:
            chosen = containers[index % len(containers)]
            if how == "remove":
                self.loop.run(self.world.engines[host_id].remove_past_all(chosen))
            else:
                chosen.exit(137 if how == "oom" else 1, oom_killed=how == "oom")
        self._after(0.05)

    @rule(
        host_id=HOST_IDS,
        what=st.sampled_from(["away", "slow", "slower", "disk_full", "refuses", "pull"]),
    )
    def break_or_mend_an_engine(self, host_id: str, what: str) -> None:
        engine = self.world.engines[host_id]
        slow_s = self.world.slow_s[host_id]
        match what:
            case "away":
                engine.available = not engine.available
                engine.end_watches()
            case "slow":
                slow_s[0] = 0.0 if slow_s[0] else 1.5
            case "slower":
                slow_s[0] = 0.0 if slow_s[0] else 20.0
            case "disk_full":
                engine.disk_full = not engine.disk_full
            case "refuses":
                engine.refuses_creates = not engine.refuses_creates
            case _:
                engine.pull_fault = None if engine.pull_fault else "denied"
        self._after(0.05)

    @rule(model=MODEL_NAMES, seconds=st.sampled_from([0.1, 2.0, 8.0, 25.0]))
    def change_how_long_a_model_takes(self, model: str, seconds: float) -> None:
        if model in self.world.manners:
            self.world.manners[model].takes_s = seconds
        self._after(0.05)

    @rule(keeps=st.booleans())
    def change_whether_a_model_gives_its_memory_back(self, *, keeps: bool) -> None:
        self.world.manners["small"].keeps = keeps
        self._after(0.05)

    # --- the end ---

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self._heal_and_settle()
                for what, count in seen(self.world).items():
                    Fleet.ends[what] = Fleet.ends.get(what, 0) + count
        finally:
            self.loop.finish()
            asyncio.set_event_loop(None)
            self._virtual.__exit__(None, None, None)
            gc.enable()
            gc.collect(0)  # all that is new is young: nothing was collected meanwhile

    def _heal_and_settle(self) -> None:
        if wrong_now(self.world):
            return  # it was told
        self.world.heal()
        self._judge(f"{HEALED_WITHIN_S:g} s after all was mended", self._quiet(HEALED_WITHIN_S))
        self.loop.advance(STAYS_S)
        self._judge("after the quiet", self._quiet(A_REPORT_S))
        for job_id in JOBS_OF_CLIENTS:
            self.world.submit(_request(job_id, Verb.TERMINATE, ""))
        self.loop.advance(A_REPORT_S)
        self._judge(
            f"{HEALED_WITHIN_S:g} s after all jobs were terminated",
            self._quiet(HEALED_WITHIN_S, nothing_waits=True),
        )
        self._judge("at the end", wrong_at_the_end(self.world))
        self._judge("at the end", wrong_now(self.world))

    def _quiet(self, within_s: float, *, nothing_waits: bool = False) -> list[str]:
        """Wait until all is in order; return what is not in time."""
        until = self.loop.time() + within_s
        while True:
            wrong = wrong_when_quiet(self.world, nothing_waits=nothing_waits)
            if not wrong or self.loop.time() >= until:
                return wrong
            # Not a multiple of any interval of the product: reports are on their way then.
            self.loop.advance(LOOK_EVERY_S)

    def _after(self, seconds: float) -> None:
        """End a rule: each of them ends with this, once."""
        Fleet.steps += 1
        self._advance(seconds)

    def _advance(self, seconds: float) -> None:
        self.loop.advance(seconds)
        self._judge("now", wrong_now(self.world))

    def _judge(self, when: str, wrong: list[str]) -> None:
        if wrong:
            lines = [*wrong[:12], f"({when}, at {self.loop.time():.3f})", *self.log[-SHOWN:]]
            raise AssertionError("\n".join(lines))

    def _have_a_standby(self) -> None:
        if len(self.world.dispatchers) < 2:
            self.world.start_dispatcher()
            self._advance(1.0)

    def _member(self, index: int) -> Member | None:
        members = self.world.members
        return members[index % len(members)] if members else None


def _request(job_id: str, verb: Verb, model: str) -> dict[str, Any]:
    request: dict[str, Any] = {"job_id": job_id, "operation_type": verb.value}
    if verb in (Verb.DEPLOY_CREATE, Verb.TEMP):
        request["model"] = model
    if verb is Verb.INFER or (verb is Verb.TEMP and model != "batch"):
        request["input"] = {}
    return request
