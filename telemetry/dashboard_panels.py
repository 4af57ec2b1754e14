"""What the dashboards show: every panel and its queries."""

from typing import Final

from telemetry.dashboards import DEPLOYMENT, Dashboard, Panel, Query


def _query(template: str, legend: str = "") -> Query:
    return Query(template.replace("[D]", DEPLOYMENT), legend)


OVERVIEW: Final = Dashboard(
    "penstock-overview",
    "Penstock: overview",
    "Is it well? Objectives, states, what comes and what is done.",
    (
        Panel(
            "Up",
            (_query("penstock_up{[D]}", "{{deployment}}"),),
            "1 when the store can be read. At 0 look at the server; hosts wait, and nothing acknowledged is lost.",
            kind="stat",
            width=4,
        ),
        Panel(
            "Runs that fail",
            (_query("penstock:run_failures:ratio_rate1h{[D]}", "{{deployment}}"),),
            "Of the runs that succeeded or failed within the hour. More than 1 % spends the error budget: "
            "`penstock runs --state failed`, then `penstock why RUN`.",
            unit="percentunit",
            kind="stat",
            bounds=(0.01, 0.06),
            width=5,
        ),
        Panel(
            "Error budget left",
            (_query("1 - penstock:run_failures:ratio_rate3d{[D]} / 0.01", "{{deployment}}"),),
            "Of three days, at an objective of 99 %. Below 0: deploy nothing but mends.",
            unit="percentunit",
            kind="stat",
            width=5,
        ),
        Panel(
            "Unknown",
            (_query('penstock_runs{[D],state="confirmation_unknown"}', "{{deployment}}"),),
            "Runs of whose effect nobody knows whether it happened. `penstock unknown`, then `penstock resolve`.",
            kind="stat",
            bounds=(1, 10),
            width=5,
        ),
        Panel(
            "Live hosts",
            (_query('penstock_hosts{[D],state="live"}', "{{deployment}}"),),
            "0: nobody works. `penstock hosts`.",
            kind="stat",
            width=5,
        ),
        Panel(
            "Runs by state",
            (_query("sum by (state) (penstock_runs{[D]})", "{{state}}"),),
            "Queued and growing: dashboard Admission. Waiting: a timer, approval or breaker; `penstock why RUN`.",
            stacked=True,
            width=12,
        ),
        Panel(
            "Runs that ended",
            (_query("sum by (state) (rate(penstock_runs_ended_total{[D]}[$__rate_interval]))", "{{state}}"),),
            "Goodput is what succeeded. Failed ones: `penstock trace RUN` shows the step.",
            unit="ops",
            stacked=True,
            width=12,
        ),
        Panel(
            "Steps",
            (_query("sum by (deployment) (rate(penstock_steps_total{[D]}[$__rate_interval]))", "{{deployment}}"),),
            "Recorded steps a second. Runs without steps: a dependency is closed, or hosts are blocked.",
            unit="ops",
        ),
        Panel(
            "Store",
            (_query("penstock_store_memory_used_ratio{[D]}", "memory"),),
            "How full the store's memory is; empty where it has no limit. From 85 % on admission sheds more and more.",
            unit="percentunit",
            bounds=(0.7, 0.85),
        ),
        Panel(
            "Store's answers",
            (_query("penstock_store_ping_seconds{[D]}", "a round trip"),),
            "Rising: the server or the network is busy; every step takes longer.",
            unit="s",
        ),
    ),
)

ADMISSION: Final = Dashboard(
    "penstock-admission",
    "Penstock: admission",
    "What waits, for how long, and what is refused.",
    (
        Panel(
            "Queue",
            (_query("sum by (class) (penstock_queue_depth{[D]})", "{{class}}"),),
            "Runs that may be claimed. `penstock queue` has the same by tenant.",
            stacked=True,
        ),
        Panel(
            "Predicted wait",
            (
                _query("max by (class) (penstock_queue_predicted_wait_seconds{[D]})", "{{class}}"),
                _query("max by (class) (penstock_queue_max_wait_seconds{[D]})", "{{class}}: at most"),
            ),
            "For a run that comes now, beside how long it may wait by default. Where they meet, the class is refused.",
            unit="s",
        ),
        Panel(
            "Load",
            (_query("max by (class) (penstock_queue_load_ratio{[D]})", "{{class}}"),),
            "What comes, as a part of what hosts can do, with all that is more valuable. Above 1 the class is shed.",
            unit="percentunit",
            bounds=(0.9, 1.0),
        ),
        Panel(
            "Shed, by reason",
            (
                _query(
                    "sum by (reason, when) (rate(penstock_shed_total{[D]}[$__rate_interval]))", "{{reason}} ({{when}})"
                ),
            ),
            "`door`: refused at once; `queue`: shed later. The reason is what is missing: hosts, a dependency, memory.",
            unit="ops",
            stacked=True,
        ),
        Panel(
            "Shed, by class",
            (_query("sum by (class) (rate(penstock_shed_total{[D]}[$__rate_interval]))", "{{class}}"),),
            "The least valuable goes first. All were told when to come back.",
            unit="ops",
            stacked=True,
        ),
        Panel(
            "Offered, accepted, started",
            (
                _query("sum (rate(penstock_runs_offered_total{[D]}[$__rate_interval]))", "offered"),
                _query("sum (rate(penstock_runs_accepted_total{[D]}[$__rate_interval]))", "accepted"),
                _query("sum (rate(penstock_runs_started_total{[D]}[$__rate_interval]))", "started"),
            ),
            "Accepted above started: the queue grows.",
            unit="ops",
        ),
        Panel(
            "Set aside",
            (_query("sum by (class) (penstock_queue_aside{[D]})", "{{class}}"),),
            "Queued runs that may not start: paused, served by no host, or over a cap. `penstock why RUN`.",
            stacked=True,
        ),
        Panel(
            "Drain",
            (_query("sum by (deployment) (penstock_queue_drain_rate{[D]})", "slot-seconds a second"),),
            "How fast hosts take work off the queue. It falls with hosts, and with dependencies that are slow.",
        ),
        Panel(
            "Controller",
            (_query("penstock_controller_age_seconds{[D]}", "{{controller}}"),),
            "Since it spoke last. Above 30 s the door goes by an old policy.",
            unit="s",
            bounds=(5, 30),
        ),
        Panel(
            "Paused",
            (_query("max by (what) (penstock_paused{[D]})", "{{what}}"),),
            "What people have paused. `penstock queue` says who and why; `penstock resume` ends it.",
            width=24,
        ),
    ),
)

DEPENDENCIES: Final = Dashboard(
    "penstock-dependencies",
    "Penstock: dependencies",
    "What agents call: breakers, limits, waits.",
    (
        Panel(
            "Breakers",
            (
                _query(
                    'max by (dependency) (penstock_dependency_breaker_state{[D],dependency=~"$dependency"})',
                    "{{dependency}}",
                ),
            ),
            "0 closed, 1 probing, 2 open. `penstock deps NAME` says why it opened.",
            bounds=(1, 2),
        ),
        Panel(
            "Not closed for",
            (
                _query(
                    'max by (dependency) (penstock_dependency_breaker_open_seconds{[D],dependency=~"$dependency"})',
                    "{{dependency}}",
                ),
            ),
            "Above five minutes somebody should look at the dependency itself.",
            unit="s",
            bounds=(60, 300),
        ),
        Panel(
            "Openings in a row",
            (
                _query(
                    'max by (dependency) (penstock_dependency_breaker_openings{[D],dependency=~"$dependency"})',
                    "{{dependency}}",
                ),
            ),
            "It opens for longer each time, until it has stayed closed.",
        ),
        Panel(
            "Limits in use",
            (
                _query(
                    'max by (dependency, resource) (penstock_dependency_used_ratio{[D],dependency=~"$dependency"})',
                    "{{dependency}} {{resource}}",
                ),
            ),
            "At 1 the limit is what holds runs up: ask the provider for more, or give less value to what can wait.",
            unit="percentunit",
            bounds=(0.8, 1.0),
        ),
        Panel(
            "Calls under way",
            (
                _query(
                    'max by (dependency) (penstock_dependency_in_flight{[D],dependency=~"$dependency"})',
                    "{{dependency}}",
                ),
                _query(
                    'max by (dependency) (penstock_dependency_in_flight_limit{[D],dependency=~"$dependency"})',
                    "{{dependency}}: at most",
                ),
            ),
            "Many calls under way and few that end: the dependency is slow. `penstock trace RUN` shows how slow.",
        ),
        Panel(
            "Waiting at gates",
            (
                _query(
                    'sum by (dependency, class) (penstock_dependency_waiting{[D],dependency=~"$dependency"})',
                    "{{dependency}} {{class}}",
                ),
            ),
            "Calls that may not go yet. `penstock why RUN` says by what each is held.",
            stacked=True,
        ),
        Panel(
            "Pace after Retry-After",
            (
                _query(
                    'min by (dependency) (penstock_dependency_pace_ratio{[D],dependency=~"$dependency"})',
                    "{{dependency}}",
                ),
            ),
            "Below 1 the provider has said 429, and limits are lowered for a while: the declared limit is too high.",
            unit="percentunit",
        ),
        Panel(
            "Retries left",
            (
                _query(
                    'min by (dependency) (penstock_dependency_retries_available{[D],dependency=~"$dependency"})',
                    "{{dependency}}",
                ),
            ),
            "At 0 retries wait for their budget: most calls fail.",
        ),
        Panel(
            "Hubs",
            (
                _query(
                    'max by (dependency) (penstock_dependency_hub_age_seconds{[D],dependency=~"$dependency"})',
                    "{{dependency}}",
                ),
            ),
            "Since each hub spoke last. Above 15 s hosts have only a safe share of the limits.",
            unit="s",
            bounds=(5, 15),
        ),
    ),
    {"dependency": "penstock_dependency_hub_age_seconds"},
)

HOSTS: Final = Dashboard(
    "penstock-hosts",
    "Penstock: hosts and migrations",
    "Who works, how much, and what moved.",
    (
        Panel(
            "Hosts",
            (_query("sum by (state) (penstock_hosts{[D]})", "{{state}}"),),
            "Expired for more than a minute: nobody takes over its runs. `penstock hosts`.",
            stacked=True,
        ),
        Panel(
            "Lease age",
            (_query("max by (host) (penstock_host_lease_age_seconds{[D]})", "{{host}}"),),
            "Renewed every second. Above three seconds the host is taken for dead, and its runs go on elsewhere.",
            unit="s",
            bounds=(2, 3),
        ),
        Panel(
            "Migrations",
            (_query("sum by (deployment) (rate(penstock_migrations_total{[D]}[$__rate_interval]))", "runs a second"),),
            "Runs that were handed back or taken from a lost host. `penstock trace RUN` shows where each went on.",
            unit="ops",
        ),
        Panel(
            "Runs and slots",
            (
                _query("max by (host) (penstock_host_runs{[D]})", "{{host}}: runs"),
                _query("max by (host) (penstock_host_slots{[D]})", "{{host}}: slots"),
            ),
            "Slots shrink when the loop is late or memory is short. All full and a queue: more hosts.",
            width=12,
        ),
        Panel(
            "Event loops",
            (_query("max by (host) (penstock_host_loop_lag_seconds{[D]})", "{{host}}"),),
            "Above 50 ms the host takes fewer runs; something blocks it: its log says what.",
            unit="s",
            bounds=(0.05, 0.25),
            width=12,
        ),
    ),
)

EFFECTS: Final = Dashboard(
    "penstock-effects",
    "Penstock: effects and approvals",
    "What waits for people.",
    (
        Panel(
            "Unknown",
            (_query('sum by (deployment) (penstock_runs{[D],state="confirmation_unknown"})', "runs"),),
            "`penstock unknown` says which effects, and who settles them.",
            bounds=(1, 10),
        ),
        Panel(
            "Oldest unknown",
            (_query("max by (deployment) (penstock_unknown_oldest_seconds{[D]})", "age"),),
            "Ask the other side with the key that `penstock unknown` shows, then `penstock resolve`.",
            unit="s",
            bounds=(600, 3600),
        ),
        Panel(
            "Approvals",
            (_query("sum by (deployment) (penstock_approvals_pending{[D]})", "pending"),),
            "`penstock approvals` lists them; runs wait unloaded.",
        ),
        Panel(
            "Next approval expires in",
            (_query("min by (deployment) (penstock_approvals_next_expiry_seconds{[D]})", "in"),),
            "Its step is refused then. 0: none is pending.",
            unit="s",
        ),
        Panel(
            "Waiting runs",
            (_query('sum by (deployment) (penstock_runs{[D],state="waiting"})', "waiting"),),
            "Unloaded: for a timer, an approval, a child run or a breaker.",
        ),
    ),
)

AGENTS: Final = Dashboard(
    "penstock-agents",
    "Penstock: agents and tenants",
    "Whose runs, and what they take.",
    (
        Panel(
            "Runs over, by agent",
            (_query("sum by (agent) (rate(penstock_agent_runs_ended_total{[D]}[$__rate_interval]))", "{{agent}}"),),
            "An agent that stops here while its runs queue: no host serves it, or it is paused.",
            unit="ops",
            stacked=True,
            width=12,
        ),
        Panel(
            "Slot time of a run, by agent",
            (
                _query(
                    "sum by (agent) (rate(penstock_agent_slot_seconds_total{[D]}[$__rate_interval])) / "
                    "sum by (agent) (rate(penstock_agent_runs_ended_total{[D]}[$__rate_interval]))",
                    "{{agent}}",
                ),
            ),
            "What a run costs. A jump: a new version, or a slow dependency; `penstock trace RUN` shows the step.",
            unit="s",
            width=12,
        ),
        Panel(
            "Queued, by tenant",
            (_query("sum by (tenant) (penstock_tenant_queued{[D]})", "{{tenant}}"),),
            "Who waits. Tenants share by weight inside a class.",
            stacked=True,
        ),
        Panel(
            "Running, by tenant",
            (_query("sum by (tenant) (penstock_tenant_running{[D]})", "{{tenant}}"),),
            "Who has hosts. Caps are in the rules: `penstock admission show`.",
            stacked=True,
        ),
        Panel(
            "Slot time, by tenant",
            (
                _query(
                    "sum by (tenant) (rate(penstock_tenant_slot_seconds_total{[D]}[$__rate_interval]))", "{{tenant}}"
                ),
            ),
            "Slot-seconds a second that each takes: what to bill by.",
            stacked=True,
        ),
    ),
)

DASHBOARDS: Final = (OVERVIEW, ADMISSION, DEPENDENCIES, HOSTS, EFFECTS, AGENTS)
