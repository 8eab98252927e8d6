"""Traces: what fleets are asked to do. The same seed gives the same trace."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

from bench.simulator.scenario import GIB, Arrival, Scenario, SimulatedHost, SimulatedModel
from modelyard.contract.states import Verb

CREATED_BY_S = 60.0
"""Seconds in which the jobs of a trace are created, before the first inference."""
USUAL_SCALE = 0.25
_DEVICE = 80 * GIB


def _models(random: Random, count: int, sizes: tuple[int, ...]) -> list[SimulatedModel]:
    """Return models of these sizes in GiB, which take a second for each 8 GiB to be loaded."""
    made: list[SimulatedModel] = []
    for number in range(count):
        size = random.choice(sizes)
        resources: dict[str, object] = {"gpus": 1, "gpu_memory": f"{size}g"}
        made.append(
            SimulatedModel.of(f"m{number}", resources, load_s=1 + size / 8, max_concurrency=4)
        )
    return made


def _fleet(hosts: int, devices: int) -> tuple[SimulatedHost, ...]:
    return tuple(
        SimulatedHost(f"h{number:04}", 256.0, 2_048 * GIB, (_DEVICE,) * devices)
        for number in range(hosts)
    )


def _creates(models: list[SimulatedModel]) -> list[Arrival]:
    step = CREATED_BY_S / (len(models) + 1)
    return [
        Arrival(number * step, f"job-{one.spec.name}", Verb.DEPLOY_CREATE, model=one.spec.name)
        for number, one in enumerate(models)
    ]


def _inferences(
    random: Random, job_id: str, per_s: float, seconds: float, takes_s: float, priority: int = 0
) -> list[Arrival]:
    """Return inferences of one job, which come independently of each other."""
    found: list[Arrival] = []
    at = CREATED_BY_S + random.expovariate(per_s)
    while at < CREATED_BY_S + seconds:
        worked_s = takes_s * random.uniform(0.5, 1.5)
        found.append(Arrival(at, job_id, Verb.INFER, worked_s, priority))
        at += random.expovariate(per_s)
    return found


def _scenario(
    name: str,
    hosts: tuple[SimulatedHost, ...],
    models: list[SimulatedModel],
    inferences: list[Arrival],
    **more: object,
) -> Scenario:
    arrivals = sorted([*_creates(models), *inferences], key=lambda one: one.at)
    return Scenario(name, hosts, tuple(models), tuple(arrivals), **more)  # type: ignore[arg-type]


def steady(random: Random, scale: float) -> Scenario:
    """Three models share each device on which two have room; each is asked all the time."""
    models = _models(random, 48, (32,))
    inferences = [
        one
        for model in models
        for one in _inferences(random, f"job-{model.spec.name}", 0.4, 900 * scale, 1.0)
    ]
    return _scenario("steady", _fleet(2, 8), models, inferences, contended=True)


def bursts(random: Random, scale: float) -> Scenario:
    """Everybody comes at once, and then nobody for a while."""
    models = _models(random, 32, (48,))
    inferences = [
        Arrival(CREATED_BY_S + burst * 240 + random.uniform(0, 30), f"job-{one.spec.name}",
                Verb.INFER, random.uniform(0.5, 1.5))
        for burst in range(max(1, round(4 * scale)))
        for one in models
        for _ in range(40)
    ]  # fmt: skip
    return _scenario("bursts", _fleet(2, 8), models, inferences, contended=True)


def one_hot(random: Random, scale: float) -> Scenario:
    """One model on each device has most of the work; others come now and then."""
    models = _models(random, 48, (48,))
    inferences = [
        one
        for number, model in enumerate(models)
        for one in _inferences(
            random, f"job-{model.spec.name}", 1.5 if number % 3 == 0 else 0.02, 900 * scale, 1.0
        )
    ]
    return _scenario("one hot model", _fleet(2, 8), models, inferences, contended=True)


def many_cold(random: Random, scale: float) -> Scenario:
    """Many models, each seldom used."""
    models = _models(random, 160, (16, 24, 32))
    inferences = [
        one
        for model in models
        for one in _inferences(random, f"job-{model.spec.name}", 0.01, 1_800 * scale, 2.0)
    ]
    return _scenario("many cold models", _fleet(2, 8), models, inferences)


def mixed_sizes(random: Random, scale: float) -> Scenario:
    """Small and large models, one-shot jobs of all sizes, some of which need several devices."""
    models = _models(random, 64, (8, 16, 40, 72))
    whole = SimulatedModel.of("whole", {"gpus": 4, "cpus": 8.0, "memory": "64g"}, load_s=10)
    small = SimulatedModel.of("small", {"gpus": 1, "gpu_memory": "8g"}, load_s=2)
    inferences = [
        one
        for model in models
        for one in _inferences(random, f"job-{model.spec.name}", 0.1, 900 * scale, 1.0)
    ]
    shots = _shots(random, "small", 1.0, 900 * scale, 10.0)
    shots += _shots(random, "whole", 0.01, 900 * scale, 60.0)
    arrivals = sorted([*_creates(models), *inferences, *shots], key=lambda one: one.at)
    fleet = (*models, whole, small)
    return Scenario("mixed sizes", _fleet(4, 8), fleet, tuple(arrivals))


def priorities(random: Random, scale: float) -> Scenario:
    """Batch work fills the fleet; interactive work, which comes all the time, goes before it."""
    batch = SimulatedModel.of("batch", {"gpus": 1, "gpu_memory": "40g"}, load_s=5)
    seconds = 1_200 * scale
    shots = _shots(random, "batch", 1.2, seconds, 20.0)
    shots += _shots(random, "batch", 0.2, seconds, 5.0, priority=50)
    arrivals = tuple(sorted(shots, key=lambda one: one.at))
    classes = {0: "batch", 50: "interactive"}
    return Scenario("priorities", _fleet(2, 8), (batch,), arrivals, classes=classes)


def large_fleet(random: Random, scale: float) -> Scenario:
    """Have a thousand hosts with eight devices each, and two models for each device."""
    hosts = 1_000 if scale >= USUAL_SCALE else max(4, round(4_000 * scale))
    models = _models(random, 40, (24, 32, 48))
    jobs = [(f"job-{number}", random.choice(models)) for number in range(hosts * 16)]
    created = [
        Arrival(CREATED_BY_S * number / len(jobs), job_id, Verb.DEPLOY_CREATE, model=one.spec.name)
        for number, (job_id, one) in enumerate(jobs)
    ]
    inferences = [
        one
        for job_id, _ in jobs
        for one in _inferences(random, job_id, 0.01, 80.0 * scale, 1.0)
    ]  # fmt: skip
    arrivals = sorted([*created, *inferences], key=lambda one: one.at)
    return Scenario("large fleet", _fleet(hosts, 8), tuple(models), tuple(arrivals))


def _shots(
    random: Random, model: str, per_s: float, seconds: float, takes_s: float, priority: int = 0
) -> list[Arrival]:
    """Return one-shot jobs of a model."""
    found: list[Arrival] = []
    at = CREATED_BY_S
    while at < CREATED_BY_S + seconds:
        job_id = f"{model}-{priority}-{len(found)}"
        worked_s = takes_s * random.uniform(0.5, 1.5)
        found.append(Arrival(at, job_id, Verb.TEMP, worked_s, priority, model))
        at += random.expovariate(per_s)
    return found


Trace = Callable[[Random, float], Scenario]
"""Makes a scenario from a source of chance and its length, 1 for the whole one."""
NAMED: tuple[Trace, ...] = (
    steady,
    bursts,
    one_hot,
    many_cold,
    mixed_sizes,
    priorities,
    large_fleet,
)


PINNED, BY_HAND, LEAVES_IDLE = 0.15, 0.15, 0.25
"""Parts of the models in random traces."""


def random_trace(seed: int, *, all_may_leave: bool = False) -> Scenario:
    """Return a small fleet that is asked for anything: what named traces would not think of.

    With `all_may_leave` every model makes room for others, and none leaves because it is idle.
    """
    random = Random(seed)  # noqa: S311 - nothing secret
    hosts = tuple(
        SimulatedHost(
            f"h{number}",
            float(random.randint(2, 8)),
            random.randint(4, 16) * GIB,
            tuple(random.choice((8, 16)) * GIB for _ in range(random.randint(0, 3))),
            has_images=random.random() < 0.7,  # noqa: PLR2004
        )
        for number in range(random.randint(1, 3))
    )
    models = tuple(_random_model(random, number, hosts) for number in range(random.randint(2, 5)))
    if not all_may_leave:
        # A source of its own, so that a trace is otherwise the same.
        chance = Random(f"residency {seed}")  # noqa: S311 - nothing secret
        models = tuple(_with_residency(chance, one) for one in models)
    arrivals: list[Arrival] = []
    for number in range(random.randint(2, 10)):
        arrivals += _random_job(random, f"job-{number}", random.choice(models))
    arrivals.sort(key=lambda one: one.at)
    wait_s = random.choice((0.0, 5.0, 30.0))
    return Scenario(f"random {seed}", hosts, models, tuple(arrivals), swap_wait_s=wait_s)


def _random_model(random: Random, number: int, hosts: tuple[SimulatedHost, ...]) -> SimulatedModel:
    """Return a model that the first host could hold."""
    host = hosts[0]
    gpus = random.randint(0, min(2, len(host.devices)))
    memory = random.randint(1, 4)
    resources: dict[str, object] = {
        "cpus": random.choice((0.5, 1.0, 2.0)),
        "memory": f"{memory}g",
        "gpus": gpus,
    }
    if gpus and random.random() < 0.7:  # noqa: PLR2004
        resources["gpu_memory"] = f"{random.randint(1, 8)}g"
    if random.random() < 0.5:  # noqa: PLR2004
        resources["resident_memory"] = f"{memory}g"
    residency = {
        "on_demand": True,
        "min_resident_s": random.choice((0.0, 2.0, 10.0)),
    }
    return SimulatedModel.of(
        f"m{number}",
        resources,
        load_s=random.uniform(0.1, 5.0),
        max_concurrency=random.randint(1, 3),
        residency=residency,
    )


def _with_residency(random: Random, model: SimulatedModel) -> SimulatedModel:
    """Return a model, which may now have to stay in memory, or leave it when it is idle."""
    which, leaves_idle, idle_s = random.random(), random.random(), random.choice((1.0, 3.0, 10.0))
    changes: dict[str, object] = {
        "pinned": which < PINNED,
        "on_demand": not PINNED <= which < PINNED + BY_HAND,
    }
    # Nothing would bring back a model that was loaded by hand.
    if changes["on_demand"] and leaves_idle < LEAVES_IDLE:
        changes["idle_unload_s"] = idle_s
    residency = model.spec.residency.model_copy(update=changes)
    return replace(model, spec=model.spec.model_copy(update={"residency": residency}))


def _random_job(random: Random, job_id: str, model: SimulatedModel) -> list[Arrival]:
    at, name, priority = random.uniform(0, 60), model.spec.name, random.choice((0, 0, 50, -50))
    if random.random() < 0.3:  # noqa: PLR2004
        return [Arrival(at, job_id, Verb.TEMP, random.uniform(0, 10), priority, name)]
    found = [Arrival(at, job_id, Verb.DEPLOY_CREATE, priority=priority, model=name)]
    if not model.spec.residency.on_demand:
        found.append(Arrival(at, job_id, Verb.DEPLOY_LOAD, priority=priority))
    for _ in range(random.randint(1, 24)):
        at += random.expovariate(0.5)
        verb = Verb.INFER if random.random() < 0.9 else Verb.DEPLOY_LOAD  # noqa: PLR2004
        found.append(Arrival(at, job_id, verb, random.uniform(0, 3), priority))
    return [*found, Arrival(at + 1, job_id, Verb.TERMINATE)]
