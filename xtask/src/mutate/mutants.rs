//! The protections, each with the edit that takes it out and the test that must notice.

use super::Mutant;

const FILES: &str = "clawbox-ebpf/src/hooks/file.rs";
const DECIDE: &str = "clawbox-common/src/decide/mod.rs";
const ADMISSION: &str = "clawbox-common/src/decide/admission.rs";
const DECIDE_FILES: &str = "clawbox-common/src/decide/file.rs";
const ALLOWED: &str = "clawbox-ebpf/src/allowed.rs";
const EXEC: &str = "clawbox-ebpf/src/hooks/exec.rs";
const LAUNCH_CALLS: &str = "clawbox-userspace/src/sandbox/launch/syscalls.rs";
const LAUNCH_LANDLOCK: &str = "clawbox-userspace/src/sandbox/launch/landlock.rs";
/// The test of everything that the filter refuses.
const FILTER: &str = "what_the_filter_refuses";

/// One that is tested on this machine's own kernel.
const fn here(
    name: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
    test: &'static str,
) -> Mutant {
    Mutant { name, file, from, to, test, needs_lsm: false }
}

/// One of a BPF LSM program.
const fn lsm(
    name: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
    test: &'static str,
) -> Mutant {
    Mutant { needs_lsm: true, ..here(name, file, from, to, test) }
}

pub(super) const ALL: &[Mutant] = &[
    lsm(
        "each echo request is judged by where it goes",
        "clawbox-ebpf/src/hooks/connected.rs",
        "        return pings(sock, message);",
        "        return 0;",
        "echo_requests_reach_what_a_rule_names_and_nobody_else",
    ),
    here(
        "what a process goes on with after a signal is no call",
        "clawbox-ebpf/src/hooks/call.rs",
        "    if number == NO_CALL {\n",
        "    if number == NO_CALL - 1 {\n",
        "going_on_after_a_signal_is_no_refused_call",
    ),
    here(
        "what a standing rule is for does not run before it is said what it is",
        "clawbox-ebpf/src/subject.rs",
        "bpf_send_signal(SIGSTOP);",
        "bpf_send_signal(0);",
        "nothing_is_done_in_a_new_cgroup_that_a_standing_rule_is_for_before_it_is_a_sandbox",
    ),
    here(
        "a start in somebody else's cgroup is looked for in all cgroups above",
        "clawbox-ebpf/src/attached.rs",
        "for level in 1..=LEVELS as u64 {",
        "for level in 15..=LEVELS as u64 {",
        "who_is_in_a_cgroup_when_it_is_attached_is_held_from_then_on",
    ),
    here(
        "what is in a cgroup that is attached gets an identity",
        "clawbox-userspace/src/kernel/enforcer/cgroups.rs",
        "let is_for_all = u32::from(whom == Whom::Everybody);",
        "let is_for_all = u32::from(whom != Whom::Everybody);",
        "who_is_in_a_cgroup_when_it_is_attached_is_held_from_then_on",
    ),
    here(
        "the daemon hears no process of a sandbox",
        "clawbox-userspace/src/api/server.rs",
        "Ok(stream) if is_confined(stream.peer()) => {",
        "Ok(stream) if is_confined(stream.peer()) && false => {",
        "a_user_sees_and_stops_their_own_sandboxes_alone_and_a_sandbox_none",
    ),
    here(
        "a user has no say in somebody else's sandbox",
        "clawbox-userspace/src/daemon/member.rs",
        "peer.manages() || self.owner == peer.uid",
        "peer.manages() || self.owner == peer.uid || true",
        "a_user_sees_and_stops_their_own_sandboxes_alone_and_a_sandbox_none",
    ),
    here(
        "only root runs commands as somebody else",
        "clawbox-userspace/src/daemon/request.rs",
        "if !request.user.is_empty() && peer.uid != 0 {",
        "if !request.user.is_empty() && peer.uid == u32::MAX {",
        "a_user_sees_and_stops_their_own_sandboxes_alone_and_a_sandbox_none",
    ),
    here(
        "slots that nobody wrote down are nobody's",
        "clawbox-userspace/src/sandbox/adopt.rs",
        "for slot in slots.len()..used {",
        "for slot in used..used {",
        "what_a_policy_named_that_nobody_was_told_of_gains_nothing_by_the_next_one",
    ),
    here(
        "a daemon that refuses to start leaves enforcement on",
        "clawbox-userspace/src/daemon/mod.rs",
        "if host.cgroups()?.is_empty() {",
        "if true {",
        "a_daemon_that_may_not_do_without_bpf_lsm_leaves_what_runs_enforced",
    ),
    here(
        "a child that nothing says whose it is, is denied",
        "clawbox-ebpf/src/subject.rs",
        "unsafe { write_volatile(word, 1) }",
        "unsafe { write_volatile(word, 0) }",
        "where_the_table_is_full_a_child_outside_the_cgroup_is_denied_and_so_is_its_own",
    ),
    here(
        "a child of an orphan is one",
        "clawbox-ebpf/src/subject.rs",
        "        if has_orphans() {\n            seat::take(group);\n        }\n",
        "",
        "where_the_table_is_full_a_child_outside_the_cgroup_is_denied_and_so_is_its_own",
    ),
    lsm(
        "what Landlock refuses first is recorded",
        "clawbox-ebpf/src/hooks/ceiling.rs",
        "    if matches!(standing, Standing::Outside) {\n        return;\n    }\n",
        "    if !matches!(standing, Standing::Outside) {\n        return;\n    }\n",
        "with_bpf_lsm_every_refused_use_of_a_file_has_one_record_whoever_is_asked_first",
    ),
    lsm(
        "a send on a connected socket is judged",
        "clawbox-ebpf/src/hooks/connected.rs",
        "    used(socket, Kind::SendConnected)\n",
        "    used(socket, Kind::SendConnected).max(0)\n",
        "a_socket_is_judged_by_who_uses_it_whoever_has_connected_it",
    ),
    lsm(
        "a receipt on a connected socket is judged",
        "clawbox-ebpf/src/hooks/connected.rs",
        "    used(unsafe { Kernel::new(ctx.arg(0)) }, Kind::Receive)\n",
        "    used(unsafe { Kernel::new(ctx.arg(0)) }, Kind::Receive).max(0)\n",
        "a_socket_is_judged_by_who_uses_it_whoever_has_connected_it",
    ),
    lsm(
        "a source route is refused",
        "clawbox-ebpf/src/hooks/connected.rs",
        "kernel_read::names_a_route(message) &&",
        "kernel_read::names_a_route(message) && socket.is_null() &&",
        "no_way_out_but_the_ones_that_the_policy_names",
    ),
    here(
        "a narrowed policy resets what it does not allow",
        "clawbox-userspace/src/sandbox/connections.rs",
        "            if verdicts.iter().any(Decision::goes_on) {\n",
        "            if !verdicts.is_empty() {\n",
        "a_policy_that_is_narrowed_resets_what_it_does_not_allow_and_nothing_else",
    ),
    here(
        "a narrowed policy leaves alone what it allows",
        "clawbox-userspace/src/sandbox/connections.rs",
        "            if verdicts.iter().any(Decision::goes_on) {\n",
        "            if verdicts.is_empty() {\n",
        "a_policy_that_is_narrowed_resets_what_it_does_not_allow_and_nothing_else",
    ),
    lsm(
        "a stream is taken from by splice by who may read it",
        "clawbox-ebpf/src/hooks/connected.rs",
        "    if sends && !kernel_read::sends_pages() {\n",
        "    if !sends || !kernel_read::sends_pages() {\n",
        "a_socket_is_judged_by_who_uses_it_whoever_has_connected_it",
    ),
    lsm(
        "no datagram is begun by one program to be ended by another",
        "clawbox-ebpf/src/hooks/connected.rs",
        "    if kernel_read::waits_for_more(sock, message) && refuses(socket, Reason::DatagramInParts) {\n",
        "    if kernel_read::waits_for_more(sock, message) && sock.is_null() {\n",
        "a_socket_is_judged_by_who_uses_it_whoever_has_connected_it",
    ),
    here(
        "a connection to be verified goes to the agent",
        DECIDE,
        "if is_verified != 0 { Route::Verifier }",
        "if is_verified > 1 { Route::Verifier }",
        "a_connection_goes_on_only_if_it_names_the_host_that_it_was_made_for",
    ),
    here(
        "an encrypted ClientHello is refused",
        "clawbox-userspace/src/gateway/verifier.rs",
        "    if first.is_hidden && !wanted.is_some_and(may_hide) {\n",
        "    if first.is_hidden && wanted.is_none() {\n",
        "a_connection_goes_on_only_if_it_names_the_host_that_it_was_made_for",
    ),
    here(
        "a policy that takes back `ech: allow` resets what hides a name",
        "clawbox-userspace/src/sandbox/connections.rs",
        "    if !is_read || image.admits_hidden(decision.host) {\n",
        "    if !is_read || decision.host != 0 {\n",
        "a_policy_that_lets_no_name_be_hidden_any_more_ends_where_one_is_and_nothing_else",
    ),
    here(
        "what is held goes nowhere before it is approved",
        DECIDE,
        "        route: Route::Waiting,\n",
        "        route: Route::Real,\n",
        "what_no_rule_names_waits_until_it_is_approved_or_denied",
    ),
    here(
        "names below a wildcard have a budget",
        "clawbox-userspace/src/dns/budget.rs",
        "        if cost > self.left {\n",
        "        if cost > self.left + BYTES * 99.0 {\n",
        "no_way_out_but_the_ones_that_the_policy_names",
    ),
    here(
        "an identity says whom it was written for",
        "clawbox-ebpf/src/subject.rs",
        "        if subject.incarnation.born == now.born {",
        "        if now.born != 0 {",
        "an_identity_of_another_process",
    ),
    here(
        "the identity comes before the cgroup",
        "clawbox-ebpf/src/subject.rs",
        "    if let Some(subject) = identity(group) {",
        "    if let Some(subject) = identity(group).filter(|_| cgroup_sandbox().is_some()) {",
        "a_process_that_moves_to_another",
    ),
    here(
        "embedded addresses are judged as what they embed",
        ADMISSION,
        "        let judged = address.embedded();",
        "        let judged = *address;",
        "an_address_that_embeds",
    ),
    here(
        "questions go to the sandbox's resolver",
        DECIDE,
        "    if to.port == DNS_PORT {",
        "    if to.port == DNS_PORT + 1 {",
        "a_name_is_reached_through",
    ),
    here(
        "some ranges are closed whatever a policy says",
        DECIDE,
        "Range::LinkLocal as u32 => Reason::LinkLocal,",
        "Range::LinkLocal as u32 => Reason::Unset,",
        "some_ranges_are_closed",
    ),
    here(
        "a rule admits its binaries alone",
        ADMISSION,
        "            if met != 0 {",
        "            if met != 0 || word == 0 {",
        "a_binary_is_its_inode",
    ),
    here(
        "the socket that would get it says whose a destination is",
        DECIDE,
        "to.receiver != 0 && to.receiver == subject.sandbox",
        "to.receiver <= subject.sandbox",
        "a_clients_own_port_lends_no_way",
    ),
    lsm(
        "an entry below which a rule lies keeps its name",
        FILES,
        "    file::entry(&found.search, search::is_held(place.dentry, state), state)",
        "    file::entry(&found.search, false, state)",
        "islands_in_a_writable_tree",
    ),
    lsm(
        "what is linked must be writable by its old name",
        FILES,
        "    let (mut judged, mut at) = (Judged::by(&of_object(&standing, WRITE, old)), old);",
        "    let (mut judged, mut at) = (Judged::by(&of_entry(&standing, new)), old);",
        "islands_in_a_writable_tree",
    ),
    lsm(
        "what the sandbox writes is not executed",
        DECIDE_FILES,
        "            && search.is_written() =>",
        "            && search.is_written() && search.policy == 0 =>",
        "what_the_sandbox_may_write",
    ),
    lsm(
        "file rules of one binary are its own",
        DECIDE_FILES,
        "        if for_all | writers | readers == 0 {",
        "        if rule.flags & BY_BINARY != 0 {\n            readers = 1;\n        }\n        if for_all | writers | readers == 0 {",
        "a_rule_for_one_binary",
    ),
    lsm(
        "another sandbox's processes are out of reach",
        DECIDE_FILES,
        "        Ok((_, state)) => deny(Reason::OtherProcess, state),",
        "        Ok((_, state)) => allow(Reason::OtherProcess, state),",
        "another_process_and_the_kernels",
    ),
    lsm(
        "no reach into a process that is somebody more",
        DECIDE_FILES,
        "        more |= other.own.words[word] & !subject.own.words[word];\n        more |= other.lineage.words[word] & !subject.lineage.words[word];",
        "        more |= other.own.words[word] & !other.own.words[word];",
        "no_identity_reaches",
    ),
    lsm(
        "only listed programs start",
        "clawbox-common/src/decide/execution.rs",
        "    if met == 0 { deny",
        "    if met == 0 && sandbox == 0 { deny",
        "only_listed_programs_start",
    ),
    lsm(
        "named programs are started securely",
        EXEC,
        "        kernel_read::start_securely(bprm);",
        "        let _ = kernel_read::start_securely;",
        "a_named_program_takes_no_code",
    ),
    lsm(
        "a Unix socket is judged where it was bound",
        "clawbox-ebpf/src/hooks/unix.rs",
        "    eacces(object(Operation::UnixSocket, WRITE, place))",
        "    eacces(object(Operation::UnixSocket, 0, place) || !matches!(standing, Standing::Outside))",
        "a_sandbox_reaches_its_own_sockets",
    ),
    lsm(
        "a remembered allow is of one moment",
        ALLOWED,
        "== now.changes\n",
        "| now.changes != u64::MAX\n",
        "no_allow_outlives",
    ),
    lsm(
        "an object with two names is not remembered",
        ALLOWED,
        "kernel_read::names_of(kernel_read::inode_of(file)) == 1",
        "kernel_read::names_of(kernel_read::inode_of(file)) != 0",
        "no_allow_outlives",
    ),
    lsm(
        "a name less is a new moment",
        FILES,
        "        allowed::one_name_less();",
        "        let _ = allowed::one_name_less;",
        "no_allow_outlives",
    ),
    lsm(
        "a remembered allow is of one mount",
        ALLOWED,
        "== kernel_read::mount_of(file)\n",
        "| kernel_read::mount_of(file) != 0\n",
        "no_allow_outlives",
    ),
    lsm(
        "a remembered allow is one subject's",
        ALLOWED,
        "|| is_same(kept, subject))",
        "|| is_same(kept, subject) | (version != 0))",
        "a_rule_for_one_binary",
    ),
    lsm(
        "what is asked first is of one kind of subject",
        ALLOWED,
        "(*kept).kind).read_volatile() == subject.kind\n",
        "(*kept).kind).read_volatile() | subject.kind != 0\n",
        "a_rule_for_one_binary",
    ),
    // Rows 2, 4 and 6: the loader, an interpreter, and what replaces an allowed binary are others.
    here(
        "a rule admits no loader",
        ADMISSION,
        "            if met != 0 {",
        "            if met != 0 || word == 0 {",
        "loaders_memory_and_descriptors",
    ),
    here(
        "a rule admits no interpreter",
        ADMISSION,
        "            if met != 0 {",
        "            if met != 0 || word == 0 {",
        "a_script_counts_when",
    ),
    here(
        "a rule admits no replacement",
        ADMISSION,
        "            if met != 0 {",
        "            if met != 0 || word == 0 {",
        "an_allowed_binary_is_neither",
    ),
    here(
        "what may be read may not be written",
        LAUNCH_LANDLOCK,
        "(&request.read_only, AccessFs::from_read(abi))",
        "(&request.read_only, AccessFs::from_all(abi))",
        "an_allowed_binary_is_neither",
    ),
    lsm(
        "a script's file says who it is where nobody can write",
        EXEC,
        "    if found.whole && !found.search.is_written() {",
        "    if found.whole {",
        "a_script_is_known_by",
    ),
    here("no chroot", LAUNCH_CALLS, "    SYS_chroot \"changes what a path means\"\n", "", FILTER),
    here("no PR_SET_MM", LAUNCH_CALLS, "is(0, libc::PR_SET_MM)", "is(0, -1)", FILTER),
    here(
        "no ptrace",
        LAUNCH_CALLS,
        "    SYS_ptrace \"takes over another process, and with it that binary's rights\"\n",
        "",
        FILTER,
    ),
    here(
        "no userfaultfd",
        LAUNCH_CALLS,
        "    SYS_userfaultfd \"stalls the kernel in the middle of a copy: the usual lever for exploits\"\n",
        "",
        FILTER,
    ),
    here(
        "no x32",
        "clawbox-userspace/src/sandbox/launch/seccomp.rs",
        "jf: 1, k: X32_SYSCALL_BIT }",
        "jf: 1, k: u32::MAX }",
        FILTER,
    ),
    here(
        "no bpf",
        LAUNCH_CALLS,
        "    SYS_bpf \"loads programs and reaches the enforcer's own maps and links by id\"\n",
        "",
        FILTER,
    ),
    here(
        "without an identity the cgroup denies",
        "clawbox-ebpf/src/subject.rs",
        "    if cgroup_sandbox().is_some() || is_orphan(group) {",
        "    if is_orphan(group) {",
        "where_the_table_of_identities_is_full",
    ),
    lsm(
        "what is too deep is refused",
        DECIDE_FILES,
        "    deny(Reason::TooDeep, state)",
        "    allow(Reason::TooDeep, state)",
        "islands_in_a_writable_tree",
    ),
    lsm(
        "attributes are judged",
        FILES,
        "    eacces(object(operation, WRITE, Place::of_dentry(dentry)))",
        "    eacces(object(operation, WRITE, Place::of_dentry(dentry)) | true)",
        "islands_in_a_writable_tree",
    ),
    lsm(
        "a name has a rule before it is there",
        DECIDE_FILES,
        "    if here {\n        found |= flags(lookup.name(&key));\n    }",
        "    if here {\n        found |= 0;\n    }",
        "islands_in_a_writable_tree",
    ),
    lsm(
        "a descriptor is judged when it comes",
        FILES,
        "    eacces(object(Operation::Receive, kernel_read::open_mode(file), Place::of_file(file)))",
        "    let judged = object(Operation::Receive, kernel_read::open_mode(file), Place::of_file(file));\n    eacces(judged | true)",
        "a_descriptor_that_comes_from_outside",
    ),
    here(
        "inherited files are closed",
        "clawbox-userspace/src/sandbox/launch/enter.rs",
        "SYS_close_range, 3u32,",
        "SYS_close_range, 30u32,",
        "a_descriptor_that_clawbox_inherits",
    ),
    here(
        "what the ring does not take is counted",
        "clawbox-ebpf/src/contact.rs",
        "        lost_by(whose(), u32::from(kind), judged.verdict());\n",
        "",
        "a_flood_changes_no_verdict",
    ),
    here(
        "a record's number is the next one",
        "clawbox-ebpf/src/emit.rs",
        "let mut number = 1_u64;",
        "let mut number = 2_u64;",
        "a_flood_of_allows_takes_no_room",
    ),
    here(
        "what finds no room takes a number too",
        "clawbox-ebpf/src/emit.rs",
        "    number_lost(kind);\n",
        "",
        "a_flood_of_allows_takes_no_room",
    ),
    here(
        "while nothing can be recorded no policy is in force",
        "clawbox-userspace/src/kernel/enforcer/states.rs",
        "self.put_state(sandbox, &state.paused())",
        "self.put_state(sandbox, state)",
        "nothing_is_allowed_while_nothing_can_be_recorded",
    ),
    here(
        "a policy that is paused is not in force",
        "clawbox-common/src/rule.rs",
        "self.policy != 0 && self.flags & PAUSED == 0\n",
        "self.policy != 0\n",
        "nothing_is_allowed_while_nothing_can_be_recorded_and_all_of_it_again_when_there_is_room",
    ),
    here(
        "a policy that says the same has numbers of its own",
        "clawbox-userspace/src/compile/generation.rs",
        "        Self { compiled, ..self }\n",
        "        Self { compiled, generation: 1 }\n",
        "sandboxes_of_two_users_have_each_their_own_policy",
    ),
    here(
        "each of many connects that are alike counts",
        "clawbox-ebpf/src/flow.rs",
        "(&raw mut (*flow).again, 1);",
        "(&raw mut (*flow).again, 0);",
        "connects_that_are_alike_are_told_once",
    ),
    here(
        "what finds no room to be asked about is held",
        "clawbox-ebpf/src/attached.rs",
        "if found == NOT_ATTACHED && has_unasked()",
        "if found != NOT_ATTACHED && has_unasked()",
        "what_the_agent_cannot_be_asked_about",
    ),
    here(
        "a sandbox has no say in its policy",
        "clawbox-userspace/src/sandbox/control.rs",
        "(!is_known || is_confined(pid)).then(",
        "(!is_known && is_confined(pid)).then(",
        "a_sandbox_has_no_say",
    ),
    lsm(
        "bpf is looked for in the list of LSMs",
        "clawbox-userspace/src/kernel/lsm.rs",
        "|module| module == \"bpf\"",
        "|module| module != \"\"",
        "without_bpf_in_the_list",
    ),
    lsm(
        "open files are judged again after a change",
        "clawbox-ebpf/src/hooks/open_file.rs",
        "    eacces(opened(operation, access, file))",
        "    eacces(opened(operation, access, file) || access != 0)",
        "narrowing_reaches_files",
    ),
    lsm(
        "a listener that was never bound is refused",
        "clawbox-ebpf/src/hooks/listen.rs",
        "    eperm(decision.goes_on())",
        "    eperm(decision.goes_on() || decision.policy != 0)",
        "a_listener_that_was_never_bound",
    ),
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_mutant_fits_the_source_and_a_test() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let tests: String = ["tests/tests/kernel", "tests/tests/attacks"]
            .iter()
            .flat_map(|directory| std::fs::read_dir(root.join(directory)).unwrap())
            .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
            .collect();
        for mutant in ALL {
            let source = std::fs::read_to_string(root.join(mutant.file)).unwrap();
            assert_eq!(source.matches(mutant.from).count(), 1, "{}", mutant.name);
            assert!(tests.contains(&format!("fn {}", mutant.test)), "{}", mutant.name);
        }
    }
}
