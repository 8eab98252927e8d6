"""The faults of docs/faults.md, as data: what `make faults` has to account for."""

ROWS = (
    "Gateway killed before, during, after publish",
    "Gateway SIGTERM under load",
    "Gateway cut from RabbitMQ; from MongoDB; from both",
    "Dispatcher killed between any two side effects",
    "Dispatcher frozen 90 s, then thawed",
    "Two dispatchers, 10,000 operations, one slot",
    "Worker killed at every Docker step",
    "Worker frozen past its lease, then thawed",
    "Host cut from the broker for 2 minutes; host gone for good",
    "Event loop blocked 40 s",
    "Clock of one host off by an hour",
    "dockerd restarted, frozen, slow (30 s a call), its event stream dropped",
    "Container: OOM, exit code, killed from outside, never ready",
    "Image missing, registry refuses, pull slower than 30 minutes",
    "Name or port taken; disk full on host, broker or database",
    "Poison message: not JSON, too big, unknown verb, crashes the consumer",
    "A message 1,000 times, some with another payload",
    "Reports shuffled, doubled, after the end",
    "RabbitMQ restarted; memory alarm for a minute; queue deleted; consumer cancelled",
    "Queue declared with other arguments",
    "MongoDB step-down, killed, cut for 10 minutes",
    "Sweep against completion",
    "Child killed by OOM, parent ends well or with its own code",
)

ROLLING = "1,000 operations, everything killed in turn"
"""All of them together."""
DRAINS = "Drain with move under load; drain with a deadline; dispatchers killed meanwhile"
LEADERSHIP = "Leading dispatcher killed, frozen past its lease, cut from MongoDB, from RabbitMQ"
CANCELS = "Cancel at any moment while workers are killed and frozen"
DEAF = "Worker deaf, with its way to speak intact"
ORPHANS = "A container with our labels that the record knows nothing of"
SHUTDOWN = "SIGTERM to everything at once, under load; a second SIGTERM"
BUSY = "Model server silent because it is busy"
FLOODS = "Model server that floods"
ODD = "Model server that is odd"
KEEPS = "Model server that keeps its memory after an unload"
LOADS = "Worker killed while it loads a model"
VANISHES = "Device that vanishes with a model in its memory, and comes back"
BACK = "Host back after LOST with models in memory"
FORGOTTEN = "Footprints missing"
EVICTS = "Leader killed between the UNLOAD of an eviction and the LOAD that it is for"
CLIENTS = (
    "Clients that vanish while they wait; 300 idle or half-open connections; bodies at every limit "
    "at once"
)
"""Promises of docs/faults.md that are about more than one fault, or about none."""

REQUIRED = (
    *ROWS,
    ROLLING,
    DRAINS,
    LEADERSHIP,
    CANCELS,
    DEAF,
    ORPHANS,
    SHUTDOWN,
    BUSY,
    FLOODS,
    ODD,
    KEEPS,
    LOADS,
    VANISHES,
    BACK,
    FORGOTTEN,
    EVICTS,
    CLIENTS,
)
"""All that `make faults` has to make: a name without a test is missing."""

NOT_MADE = {
    "pull slower than 30 minutes": "RabbitMQ's consumer timeout, which is those 30 minutes, is "
    "lowered to 10 s instead, and the pull lasts for more than twice that",
    "port taken": "the engine chooses the published port itself, a free one",
    "disk full on the broker": "its alarm is raised by its limit, not by a full disk: it stops "
    "taking messages long before",
    "a device whose memory stays taken": "the devices are declared, and of those nothing is "
    "measured; unit tests taint devices in memory",
    "503 at once while blocked": "while RabbitMQ alone is, requests are answered 202 on purpose: "
    "MongoDB takes them; they get 503 where MongoDB is away too, which is made",
    "cut for 10 minutes": "it is cut for 30 seconds; `-k everybody_cut --cut-s 600` makes ten "
    "minutes, twice",
    "open event streams closed": "there are none yet; long polls are answered at once",
    "10,000 operations": "300 are made; `-k one_slot --many 10000` makes them all, which "
    "may take hours",
}
"""Parts of rows that are not made on one small machine, and the reason."""
