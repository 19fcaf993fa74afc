//! What each reason of a record means, who decided, and what to do about it. Data alone; a test sees to it
//! that no reason is left out.

/// What is told of a reason.
#[derive(Clone, Copy, Debug)]
pub struct Reason {
    /// Its name in records.
    pub name: &'static str,
    /// Who decided.
    pub layer: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// What to do.
    pub fix: &'static str,
}

const HOOKS: &str = "cgroup hooks (kernel)";
const LSM: &str = "BPF LSM (kernel)";
const RESOLVER: &str = "the sandbox's resolver (agent)";
const AGENT: &str = "the agent, on the connection";
const NOTHING: &str = "nothing to change";
const NEVER: &str = "no policy opens it";
const NAME_IT: &str = "allow the program this endpoint";

const fn told(
    name: &'static str,
    layer: &'static str,
    meaning: &'static str,
    fix: &'static str,
) -> Reason {
    Reason { name, layer, meaning, fix }
}

/// Every reason.
#[rustfmt::skip]
pub const ALL: &[Reason] = &[
    told("unset", HOOKS, "no cause was recorded", "report it: this should not be"),
    told("outside", HOOKS, "the process is in no sandbox", NOTHING),
    told("rule", HOOKS, "a rule of the policy admits it", NOTHING),
    told("no-identity", HOOKS, "the process never went through exec in the sandbox, or the kernel did not tell clawbox", "start the program again"),
    told("no-policy", HOOKS, "the sandbox has no policy in force", "set one: `clawbox policy set`"),
    told("unknown-endpoint", HOOKS, "no rule names this address and port", NAME_IT),
    told("other-binary", HOOKS, "a rule names the endpoint, for other programs", NAME_IT),
    told("loopback", HOOKS, "the host's own loopback, which is closed unless `host_loopback: true` opens a port", "allow the program this port of `localhost`"),
    told("link-local", HOOKS, "link-local addresses, among them the metadata services of clouds, are never allowed", NEVER),
    told("unspecified", HOOKS, "0.0.0.0 and :: are never allowed", NEVER),
    told("multicast", HOOKS, "multicast is never allowed", NEVER),
    told("reserved", HOOKS, "broadcast and reserved addresses are never allowed", NEVER),
    told("stale-name", HOOKS, "a synthetic address that this sandbox was not given, or no longer has", "have the program ask for the name again"),
    told("resolver", HOOKS, "a question on its way to the sandbox's resolver", NOTHING),
    told("no-resolver", HOOKS, "port 53, and the sandbox has no resolver", "start the sandbox again; the agent was not there"),
    told("own-listener", HOOKS, "a listener of the same sandbox", NOTHING),
    told("ephemeral-port", HOOKS, "a client's own port, chosen by the kernel", NOTHING),
    told("listen-not-allowed", HOOKS, "`listen` does not name this address and port", "add the port to `listen.ports` of the policy"),
    told("socket-kind", HOOKS, "a kind of socket that no rule can be written for", NEVER),
    told("no-memory", HOOKS, "the kernel had no memory for what it must remember", "give the host memory, and try again"),
    told("unknown-name", RESOLVER, "no rule names this host, so that its name is not resolved", NAME_IT),
    told("forbidden-address", RESOLVER, "the name's address is never allowed, or needs `allowed_ips`", "name the host exactly, or its addresses in `allowed_ips`"),
    told("upstream-failed", RESOLVER, "the name server failed or did not answer; no rule is to blame", "look at the host's name servers, or run with --dns"),
    told("table-full", RESOLVER, "a table of this sandbox is full", "name fewer hosts by wildcard; `clawbox status` shows which table"),
    told("exec", HOOKS, "a program was started", NOTHING),
    told("question-kind", RESOLVER, "a kind of question that the resolver does not forward", NEVER),
    told("no-record", RESOLVER, "the name has no record of that kind; no rule is to blame", NOTHING),
    told("address-probe", HOOKS, "how libc learns a source address; it was led to loopback and sends nothing", NOTHING),
    told("unknown-file", LSM, "no rule names the file or a directory above it", "allow its path"),
    told("closed-file", LSM, "a rule closes the file", "it is closed on purpose"),
    told("read-only", LSM, "the file may be read and not written", "allow its path to be written"),
    told("held-entry", LSM, "a rule stands at this entry or below it, so that it may not be moved, removed or replaced", "move what is beside it, or take the rule out"),
    told("too-deep", LSM, "more than 64 directories below the root of its filesystem", "keep it less deep"),
    told("writable-program", LSM, "what the sandbox can write it may not start", "put the program where the sandbox cannot write, or say `execution: { from_writable: allow }`"),
    told("other-process", LSM, "a process of another sandbox or of the host", NEVER),
    told("privileged", LSM, "something that no sandbox may do", NEVER),
    told("unlisted-program", LSM, "`execution.allow` lists programs, and this is none of them", "add the program to `execution.allow`"),
    told("foreign-socket", LSM, "a Unix socket without a path that was not made in this sandbox", NEVER),
    told("landlock", "Landlock (kernel), fixed at the start", "the policy did not give the sandbox the file when it was started, and Landlock cannot be widened", "allow its path, and start the sandbox again"),
    told("refused", "Landlock or the file's own permissions (kernel)", "refused beneath the hooks; a system call's answer does not say by which", "allow its path and start the sandbox again; if the policy has it, look at `ls -l`"),
    told("system-call", "seccomp (kernel)", "a system call that the filter of every sandbox refuses", "`clawbox doctor --system-calls` says why it is refused"),
    told("held", AGENT, "`unknown_endpoints: ask`: it waits for an answer", "`clawbox approvals list` and `approve`"),
    told("bound-socket", HOOKS, "the agent has to see this connection, and its socket is bound to an address or speaks IPv6 alone", "have the program not bind before it connects, or leave out `sni: verify` for it"),
    told("other-host", AGENT, "`sni: verify`: another host was named on the connection than it was made for", "allow the host that was named, if it is meant"),
    told("hidden-host", AGENT, "`sni: verify`: the name of the host is encrypted (ECH)", "switch ECH off in the program, or say `ech: allow`"),
    told("no-host", AGENT, "`sni: verify`: what was said first is neither TLS nor HTTP, or came late", "leave out `sni: verify` where another protocol is spoken"),
    told("refusal", AGENT, "somebody refused it, or nobody answered in time", "`clawbox approvals approve` while it waits, or allow the endpoint"),
    told("approval", AGENT, "somebody approved it", NOTHING),
    told("too-many-held", AGENT, "64 connections wait already", "answer those: `clawbox approvals list`"),
    told("name-budget", RESOLVER, "names below a wildcard carry data: this one is too long, or one too many", "name the host exactly"),
    told("source-route", HOOKS, "a packet by way of another host than the one that was judged", NEVER),
    told("datagram-in-parts", LSM, "a datagram that was to be sent in parts", "have the program send whole datagrams"),
    told("learning", "nobody", "`clawbox learn` has seen it, and nobody has judged it", NOTHING),
    told("unrecorded", HOOKS, "`audit.on_full: stop-allows`, and the audit store has no room: nothing is allowed", "give its disk room, or it more `audit.quota`; `clawbox status` says what is wrong"),
];

/// What is told of a reason; of one that a later version has, as little as its name.
#[must_use]
pub fn of(name: &str) -> Reason {
    let unknown = told("?", "unknown", "a reason of another version of clawbox", "update clawbox");
    ALL.iter().find(|reason| reason.name == name).copied().unwrap_or(unknown)
}

/// Who decided, by the class and action of a record: one reason may be given at more than one place.
#[must_use]
pub fn layer(reason: &Reason, class: &str, action: &str) -> &'static str {
    match (class, action) {
        // Uses of sockets that no cgroup hook sees.
        ("network", "listen" | "send-connected" | "receive") => LSM,
        ("network", "reset" | "verify" | "refuse" | "approve") => AGENT,
        ("network", _) if matches!(reason.name, "held" | "too-many-held") => AGENT,
        ("network", _) if reason.layer != LSM => HOOKS,
        ("dns", _) => RESOLVER,
        ("file" | "privilege", _) if [HOOKS, RESOLVER, AGENT].contains(&reason.layer) => LSM,
        _ => reason.layer,
    }
}
