//! The verdict and its reason. Zero, the value of memory nobody wrote, is a deny.

/// What happens to the operation.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The operation fails with `EPERM`.
    Deny = 0,
    /// The operation goes on.
    Allow = 1,
}

impl TryFrom<u8> for Verdict {
    type Error = u8;

    fn try_from(value: u8) -> Result<Self, u8> {
        match value {
            0 => Ok(Self::Deny),
            1 => Ok(Self::Allow),
            other => Err(other),
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        /// Why a verdict is what it is. Each value has one stable name in the audit trail.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name = $value,)* }

        impl Reason {
            /// Every reason, in the order of their values.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// The name in audit records and command output.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Reason::$name => $text,)* }
            }
        }

        impl TryFrom<u8> for Reason {
            type Error = u8;

            fn try_from(value: u8) -> Result<Self, u8> {
                match value { $($value => Ok(Reason::$name),)* other => Err(other) }
            }
        }
    };
}

reasons! {
    /// No cause was recorded; only memory nobody wrote says so.
    Unset = 0, "unset";
    /// The task is in no sandbox.
    Outside = 1, "outside";
    /// A rule of the policy admits this subject to this object.
    Rule = 2, "rule";
    /// The task stands in a sandbox's cgroup but has no identity: it has not gone through exec
    /// there, or the identity table was full when it forked.
    NoIdentity = 3, "no-identity";
    /// The sandbox has no policy loaded.
    NoPolicy = 4, "no-policy";
    /// No rule names this address, port and transport for any binary.
    UnknownEndpoint = 5, "unknown-endpoint";
    /// A rule names the endpoint, but not for this binary or an ancestor of it.
    OtherBinary = 6, "other-binary";
    /// Loopback that is neither a listener of this sandbox nor opened by `host_loopback`.
    Loopback = 7, "loopback";
    /// Link-local, which holds the cloud metadata services.
    LinkLocal = 8, "link-local";
    /// `0.0.0.0/8` or `::`.
    Unspecified = 9, "unspecified";
    /// Multicast.
    Multicast = 10, "multicast";
    /// Limited broadcast, `240.0.0.0/4`, and IPv6 ranges that no host may have.
    Reserved = 11, "reserved";
    /// A synthetic address that the sandbox's resolver did not hand out, or that has expired.
    StaleName = 12, "stale-name";
    /// A question for the sandbox's own resolver.
    Resolver = 13, "resolver";
    /// Port 53, but the sandbox has no resolver.
    NoResolver = 14, "no-resolver";
    /// A listener of the same sandbox.
    OwnListener = 15, "own-listener";
    /// A client's own port, chosen by the kernel.
    EphemeralPort = 16, "ephemeral-port";
    /// `listen` does not name this address and port.
    ListenNotAllowed = 17, "listen-not-allowed";
    /// A socket family, type or protocol that no rule can be written for.
    SocketKind = 18, "socket-kind";
    /// The kernel had no memory for what enforcement must remember.
    NoMemory = 19, "no-memory";
    /// The name is not allowed by the policy.
    UnknownName = 20, "unknown-name";
    /// The name's address lies in a range that is never allowed, or needs `allowed_ips`.
    ForbiddenAddress = 21, "forbidden-address";
    /// The resolver upstream failed or did not answer.
    UpstreamFailed = 22, "upstream-failed";
    /// A table of this sandbox is full.
    TableFull = 23, "table-full";
    /// A program was started; what it may reach follows from its identity.
    Exec = 24, "exec";
    /// A kind of DNS question that the resolver does not forward.
    QuestionKind = 25, "question-kind";
    /// The name exists, but has no record of the kind asked for.
    NoRecord = 26, "no-record";
    /// A datagram socket connected to port 0, which is how resolvers learn a source address. It is
    /// taken to loopback, so that nothing can be sent through it.
    AddressProbe = 27, "address-probe";
    /// No rule names the file or a directory above it.
    UnknownFile = 28, "unknown-file";
    /// A rule closes the file.
    ClosedFile = 29, "closed-file";
    /// The file may be read and not changed.
    ReadOnly = 30, "read-only";
    /// A rule depends on this entry, which may not be moved, removed or replaced.
    HeldEntry = 31, "held-entry";
    /// The file lies deeper than the kernel programs look.
    TooDeep = 32, "too-deep";
    /// What the sandbox may write, or what has no place in a directory, may not be executed.
    WritableProgram = 33, "writable-program";
    /// Another process, which is not of this sandbox.
    OtherProcess = 34, "other-process";
    /// Something that no sandbox may do.
    Privileged = 35, "privileged";
    /// The policy lists the programs that may be started, and this file is none of them.
    UnlistedProgram = 36, "unlisted-program";
    /// A Unix socket without a path that was not made in this sandbox.
    ForeignSocket = 37, "foreign-socket";
    /// Landlock, which some kernels ask before the hooks, was not given the file at the start.
    Landlock = 38, "landlock";
    /// The kernel refused it beneath the hooks: a backstop (Landlock), or the file's own
    /// permissions. Which of them cannot be told from a system call's answer.
    Refused = 40, "refused";
    /// A system call that the filter of every sandbox refuses.
    SystemCall = 41, "system-call";
    /// No rule names the endpoint, and the connection waits until somebody says what is to become of it.
    Held = 42, "held";
    /// The process has given its socket a local address, so that it cannot be taken to the agent.
    BoundSocket = 43, "bound-socket";
    /// What is said first on the connection names another host than it was made for, or none.
    OtherHost = 44, "other-host";
    /// The name of the host is encrypted, so that nobody can tell which it is.
    HiddenHost = 45, "hidden-host";
    /// What is said first is neither TLS nor HTTP, or not whole, or came too late.
    NoHost = 46, "no-host";
    /// Somebody has refused what was held, or nobody has answered.
    Refusal = 47, "refusal";
    /// Somebody has approved what was held.
    Approval = 48, "approval";
    /// More connections wait than may.
    TooManyHeld = 49, "too-many-held";
    /// The name is allowed by a wildcard, and is too long or one too many: names carry data.
    NameBudget = 50, "name-budget";
    /// The packet was to be sent by way of another host than the one that was judged.
    SourceRoute = 51, "source-route";
    /// A datagram was to be sent in parts: who adds one, and whom it goes to, are judged apart.
    DatagramInParts = 52, "datagram-in-parts";
    /// Nothing that is allowed can be recorded, and the configuration says that nothing is allowed then.
    Unrecorded = 53, "unrecorded";
    /// Seen while a command was learned from: nobody has judged it.
    Learning = 54, "learning";
}
