//! Rows 1, 2, 4, 5, 8, 11, 12 and 31 as far as they are about who acts: the file that the kernel
//! executed, and the ancestors inside the sandbox. Names, copies, loaders and descriptors give nobody
//! another identity.

use std::net::IpAddr;
use std::path::Path;

use aya::maps::{Array, HashMap, Map, MapData, loaded_maps};
use clawbox_common::limits::{SEATS, SUBJECTS};
use clawbox_common::subject::{Seat, Subject};
use clawbox_tests::clawbox::{Clawbox, Running, cgroup_root};
use clawbox_tests::layer::{self, Layer};
use clawbox_tests::network::SITE;
use clawbox_tests::services::Service;
use nix::sys::signal::Signal;

use super::attempt::{PYTHON, attempts, got_through, hostile};

use crate::scene::{Account, ECHO, Scene, by_nobody};

const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

fn site() -> (IpAddr, u16) {
    (SITE.into(), ECHO)
}

/// A policy under which only `bin/tool`, a copy of the attacker, may reach the site.
fn only_tool(scene: &Scene) -> (String, String) {
    let tool = scene.copy("tool");
    let policy = scene.allowing(&tool, "{ host: v4.test, port: 7 }");
    (tool, policy)
}

#[test]
fn curl_reaches_what_its_rule_names_and_neither_its_copy_nor_python_does() {
    let scene = Scene::new();
    let http = scene.world.outside(|| Service::http(80));
    let copy = scene.world.install(Path::new("/usr/bin/curl"), "curl").display().to_string();
    let policy = scene.allowing("/usr/bin/curl", "{ host: v4.test, port: 80 }");
    let python = "import socket; socket.create_connection(('v4.test', 80))";
    let account = scene.shell(
        &policy,
        &format!(
            "curl -sS --max-time 30 http://v4.test/; echo curl $?; \
             {copy} -sS --max-time 30 http://v4.test/; echo copy $?; \
             /usr/bin/python3 -c \"{python}\"; echo python $?"
        ),
    );
    let run = &account.run;
    let said: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(said, [&format!("v4.test at {SITE}"), "curl 0", "copy 7", "python 1"], "{run:?}");
    assert!(run.stderr.contains("PermissionError: [Errno 1]"), "{}", run.stderr);
    let arrivals = http.arrivals();
    assert_eq!(arrivals.len(), 1, "{arrivals:?}");
    assert_eq!(arrivals[0].said, "GET / HTTP/1.1");
    let to = (IpAddr::from(SITE), 80);
    let allowed = account.record("connect", "rule", "/usr/bin/curl", to);
    assert_eq!(allowed["object"]["host"], "v4.test");
    assert_eq!(allowed["rule"]["binary"], "/usr/bin/curl");
    for denied in [copy.as_str(), "/usr/bin/python3"] {
        let record = account.record("connect", "other-binary", denied, to);
        assert_eq!(record["object"]["host"], "v4.test");
        assert!(by_nobody(record), "{record}");
    }
    // curl also looks for its settings in the home directory, where it may not.
    let denials = account.denials();
    assert_eq!(denials.iter().filter(|(action, _)| *action == "connect").count(), 2);
}

#[test]
fn a_binary_is_its_inode_under_whatever_name_it_is_started() {
    let scene = Scene::new();
    let (tool, policy) = only_tool(&scene);
    let copy = scene.copy("copy");
    let (link, alias) = (scene.world.work().join("linked"), scene.world.work().join("alias"));
    std::fs::hard_link(&tool, &link).unwrap();
    std::os::unix::fs::symlink(&tool, &alias).unwrap();
    let (link, alias) = (link.display(), alias.display());
    let account = scene.shell(
        &policy,
        &format!(
            "{tool} tcp=v4.test:7; {link} tcp=v4.test:7; {alias} tcp=v4.test:7; \
             {copy} tcp=v4.test:7; cp {tool} own; ./own tcp=v4.test:7; \
             mv own tool; PATH=. tool tcp=v4.test:7; \
             /usr/bin/bash -c 'exec -a {tool} ./tool tcp=v4.test:7'; \
             ln tool second; ./second tcp=v4.test:7; \
             /proc/self/root$PWD/tool tcp=v4.test:7; cd /proc/self/root; .$OLDPWD/tool tcp=v4.test:7"
        ),
    );
    let step = "tcp=v4.test:7";
    account.expect(&[vec![(step, "ok"); 3], vec![(step, "EPERM"); 7]].concat());
    account.tell(&[
        (0, "by its path"),
        (0, "by a hard link, which is the same file"),
        (0, "by a symlink, which leads to the same file"),
        (1, "a copy in a directory of programs"),
        (1, "a copy of its own"),
        (1, "a copy under the allowed one's name"),
        (1, "a copy with the allowed one's argv[0]"),
        (1, "a hard link to a copy"),
        (8, "a copy by /proc/self/root"),
        (8, "a copy by a relative path from /proc/self/root"),
    ]);
    assert_eq!(scene.echo.arrivals().len(), 3);
    account.record("connect", "other-binary", &copy, site());
    let denials = account.denials();
    // Directories of PATH that are closed are refused too, where BPF LSM does not tell them.
    let mut connects = denials.iter().filter(|(action, _)| *action == "connect");
    assert!(connects.all(|denial| *denial == ("connect", "other-binary")), "{denials:?}");
}

#[test]
fn descendants_are_admitted_by_tree_and_not_by_self() {
    let scene = Scene::new();
    scene.names.host("self.test", &[SITE.into()]);
    let policy = scene.policy(
        "network_policies:\n  \
           tree:\n    endpoints: [{ host: v4.test, port: 7 }]\n    binaries: [{ path: /usr/bin/bash }]\n  \
           self:\n    endpoints: [{ host: self.test, port: 7 }]\n    \
             binaries: [{ path: /usr/bin/bash, match: self }]",
    );
    let attack = scene.attack();
    let script = format!(
        "exec 3<>/dev/tcp/self.test/7 && echo bash itself; \
         {attack} tcp=v4.test:7 tcp=self.test:7; \
         /bin/sh -c '{attack} tcp=v4.test:7 tcp=self.test:7; true'; \
         exec {attack} tcp=v4.test:7 tcp=self.test:7"
    );
    let run = Clawbox::new(&scene.world, &policy).run(&["/usr/bin/bash", "-c", &script]);
    assert!(run.stdout.starts_with("bash itself\n"), "{run:?}");
    let account = Account::of(run);
    account.expect(&[("tcp=v4.test:7", "ok"), ("tcp=self.test:7", "EPERM")].repeat(3));
    let record = account.record("connect", "other-binary", &attack, site());
    assert_eq!(record["object"]["host"], "self.test");
    let record = account.record("connect", "rule", &attack, site());
    assert_eq!(record["rule"]["policy"], "tree");
}

#[test]
fn a_script_counts_when_the_kernel_started_it_and_only_then() {
    let scene = Scene::new();
    let (attack, world) = (scene.attack(), &scene.world);
    let python = "import socket, sys\n\
                  try:\n    socket.create_connection((sys.argv[1], 7)); print('python ok')\n\
                  except PermissionError as error: print('python', error.errno)\n";
    let _ = world.script("direct", &format!("#!/usr/bin/python3\n{python}"));
    let _ = world.script("shell", &format!("#!/bin/sh\n{attack} tcp=v4.test:7\n"));
    let _ = world.script("chain", &format!("#!/usr/bin/env sh\n{attack} tcp=v4.test:7\n"));
    let bin = world.bin();
    let path = |name: &str| bin.join(name).display().to_string();
    let (direct, shell, chain) = (path("direct"), path("shell"), path("chain"));
    let policy = scene.policy(&format!(
        "network_policies:\n  rule:\n    endpoints: [{{ host: v4.test, port: 7 }}]\n    \
         binaries: [{{ path: {direct} }}, {{ path: {shell} }}, {{ path: {chain} }}]"
    ));
    let account = scene.shell(
        &policy,
        &format!(
            "{direct} v4.test; env {direct} v4.test; /usr/bin/python3 {direct} v4.test; \
             {shell}; {chain}; cd {bin}; ./shell; sh {shell}; sh <{chain}; . {shell}",
            bin = bin.display()
        ),
    );
    let said: Vec<String> = account
        .run
        .stdout
        .lines()
        .map(|line| match serde_json::from_str::<serde_json::Value>(line) {
            Ok(step) => step["outcome"].as_str().unwrap().to_owned(),
            Err(_) => line.to_owned(),
        })
        .collect();
    // `./shell` is not the absolute path that the policy names: nobody, rather than perhaps.
    assert_eq!(
        said,
        ["python ok", "python ok", "python 1", "ok", "ok", "EPERM", "EPERM", "EPERM", "EPERM"],
        "{account:?}"
    );
    for (line, attack) in [
        (2, "a named script as an interpreter's argument"),
        (5, "a named script by a relative path"),
        (6, "a named shell script as a shell's argument"),
        (7, "a named script on standard input"),
        (8, "a named script sourced"),
    ] {
        // One denial each, in their order.
        let outcome = if said[line] == "python 1" { "EPERM" } else { said[line].as_str() };
        let refused =
            said[..line].iter().filter(|said| ["EPERM", "python 1"].contains(&said.as_str()));
        account.tell_one(4, attack, outcome, refused.count());
    }
    let record = account.record("connect", "rule", "/usr/bin/python3", site());
    assert_eq!(record["subject"]["script"], direct.as_str());
    assert_eq!(record["rule"]["binary"], direct.as_str());
    let record = account.record("connect", "other-binary", "/usr/bin/python3", site());
    assert_eq!(record["subject"].get("script"), None);
}

#[test]
fn loaders_memory_and_descriptors_lend_no_identity() {
    let scene = Scene::new();
    let (tool, policy) = only_tool(&scene);
    let attack = scene.attack();
    let policy = policy.replace("[/dev/null]", "[/dev/null, /dev/shm]");
    let from_nowhere = "import os, sys; t = os.open('.', os.O_TMPFILE | os.O_RDWR, 0o755); \
         os.write(t, open(sys.argv[1], 'rb').read()); f = os.open('/proc/self/fd/%d' % t, 0); \
         os.close(t); os.set_inheritable(f, True); os.execv('/proc/self/fd/%d' % f, sys.argv[1:])";
    let shared = format!("/dev/shm/clawbox-{}", std::process::id());
    let step = "tcp=v4.test:7";
    let account = scene.shell(
        &policy,
        &format!(
            "{LOADER} {tool} {step}; {LOADER} --argv0 {tool} {tool} {step}; \
             {attack} exec-from-memory {tool} {step}; \
             cp {tool} gone; {attack} exec /bin/sh -c 'exec 9<gone; rm gone; /proc/self/fd/9 {step}'; \
             {PYTHON} -c \"{from_nowhere}\" {tool} {step}; \
             cp {tool} {shared}; {shared} {step}; rm {shared}; \
             LD_PRELOAD={tool} {attack} {step} 2>&1; \
             exec 8<{tool}; /proc/self/fd/8 {step}"
        ),
    );
    // The last one is the file itself, by way of a descriptor.
    account.expect(&[vec![(step, "EPERM"); 7], vec![(step, "ok")]].concat());
    account.record("connect", "other-binary", LOADER, site());
    account.tell(&[
        (2, "the loader with an allowed program"),
        (2, "the loader with its argv[0]"),
        (5, "the identity of a memfd"),
        (5, "the identity of an unlinked file"),
        (5, "the identity of an O_TMPFILE file"),
        (5, "the identity of a file in /dev/shm"),
        (3, "an allowed program as LD_PRELOAD of another"),
        (0, "the file itself, by way of a descriptor"),
    ]);
    assert!(account.denials().iter().all(|denial| *denial == ("connect", "other-binary")));
    assert_eq!(scene.echo.arrivals().len(), 1);
}

#[test]
fn threads_children_and_daemons_are_who_their_program_is() {
    let scene = Scene::new();
    let (tool, policy) = only_tool(&scene);
    let copy = scene.copy("copy");
    let ways =
        ["", "in-thread", "in-child", "as-daemon", "in-thread in-thread", "in-child as-daemon"];
    let mut script = String::new();
    for program in [&tool, &copy] {
        for way in ways {
            script.push_str(&format!("{program} {way} tcp=v4.test:7; "));
        }
        script.push_str(&format!("{program} exec-in-thread {program} tcp=v4.test:7; "));
        script.push_str(&format!("{program} exec {program} in-thread tcp=v4.test:7; "));
    }
    // With the host's numbers, so that what the programs say of themselves is what the trail says.
    let clawbox = Clawbox::new(&scene.world, &policy).argument("--share").argument("pid");
    let account = Account::of(clawbox.run(&["/bin/sh", "-c", &script]));
    let each = ways.len() + 2;
    let expected = [vec![("tcp=v4.test:7", "ok"); each], vec![("tcp=v4.test:7", "EPERM"); each]];
    account.expect(&expected.concat());
    assert_eq!(scene.echo.arrivals().len(), each);
    let attacks =
        ["itself", "a thread", "a child", "a daemon", "a thread's thread", "a child's daemon"];
    let execs = ["exec by a thread that is not the leader", "exec, then a thread"];
    let (may, may_not) = (vec![(0, ""); each], [attacks.as_slice(), &execs].concat());
    account.tell(&[may, may_not.into_iter().map(|attack| (11, attack)).collect()].concat());
    let by_copy = account.run.denials();
    assert_eq!(by_copy.len(), each);
    assert!(by_copy.iter().all(|record| record["subject"]["exe"] == copy.as_str()), "{by_copy:?}");
    let pids: Vec<_> = account.steps[each..].iter().map(|step| &step["pid"]).collect();
    assert!(by_copy.iter().all(|record| pids.contains(&&record["subject"]["pid"])), "{by_copy:?}");
}

#[test]
fn exec_gives_up_what_a_program_may_itself_and_keeps_what_its_tree_may() {
    let scene = Scene::new();
    scene.names.host("self.test", &[SITE.into()]);
    let tool = scene.copy("tool");
    let policy = scene.policy(&format!(
        "network_policies:\n  \
           tree:\n    endpoints: [{{ host: v4.test, port: 7 }}]\n    binaries: [{{ path: {tool} }}]\n  \
           self:\n    endpoints: [{{ host: self.test, port: 7 }}]\n    \
             binaries: [{{ path: {tool}, match: self }}]"
    ));
    let steps = "tcp=v4.test:7 tcp=self.test:7";
    let attack = scene.attack();
    let account = scene.shell(
        &policy,
        &format!(
            "{tool} {steps}; {tool} exec-in-thread {attack} {steps}; {tool} in-child exec {attack} {steps}"
        ),
    );
    let (tree, own) = ("tcp=v4.test:7", "tcp=self.test:7");
    account.expect(&[
        (tree, "ok"),
        (own, "ok"),
        (tree, "ok"),
        (own, "EPERM"),
        (tree, "ok"),
        (own, "EPERM"),
    ]);
}

#[test]
fn many_processes_at_once_are_each_denied_and_recorded() {
    let scene = Scene::new();
    let (tool, policy) = only_tool(&scene);
    let bomb = format!("fork-bomb=500,{SITE}:7");
    let account = scene.shell(&policy, &format!("{} {bomb}; {tool} tcp=v4.test:7", scene.attack()));
    let told = account.detail(&bomb);
    assert!(told["children"].as_u64().unwrap() >= 100, "{told}");
    assert_eq!(told["EPERM"], told["children"]);
    assert_eq!(account.detail("tcp=v4.test:7")["answer"], "hello\n");
    let denied = account.denials().len() as u64;
    assert_eq!(Some(denied), told["children"].as_u64());
    account.tell_one(12, "a fork bomb", "EPERM", 0);
    scene.nothing_arrived_but_at(&[SITE.into()]);
}

/// A run's table of identities without room, filled by hand while its agent is stopped.
struct FullTable {
    subjects: HashMap<MapData, u32, Subject>,
    strangers: std::ops::Range<u32>,
}

impl FullTable {
    fn of(running: &Running) -> Self {
        running.signal(Signal::SIGSTOP);
        let pinned = MapData::from_pin(running.pins().join("SUBJECTS")).unwrap();
        let mut subjects: HashMap<_, u32, Subject> =
            HashMap::try_from(Map::HashMap(pinned)).unwrap();
        let (_, subject) = subjects.iter().next().unwrap().unwrap();
        let first = 1 << 30;
        let full = (first..).find(|process| subjects.insert(process, subject, 0).is_err()).unwrap();
        assert!(full - first <= SUBJECTS, "{full}");
        Self { subjects, strangers: first..full }
    }

    fn empty(mut self, running: &Running) {
        for process in self.strangers {
            self.subjects.remove(&process).unwrap();
        }
        running.signal(Signal::SIGCONT);
    }
}

/// The table is filled by hand, while the agent, which would clear it of processes that are none, is
/// stopped: a sandbox that fills it with processes needs more memory than a small machine has.
#[test]
fn where_the_table_of_identities_is_full_a_new_process_is_nobody_and_other_sandboxes_go_on() {
    let scene = Scene::new();
    let (tool, policy) = only_tool(&scene);
    let attempt = format!("{tool} tcp=198.18.0.1:7");
    let script = format!("{tool} resolve=v4.test; read a; {attempt}; read a; {attempt}");
    let mut running = Clawbox::new(&scene.world, &policy).spawn(&["/bin/sh", "-c", &script]);
    running.line();
    let full = FullTable::of(&running);
    running.say("go");
    let outcome = |line: &str| {
        let said: serde_json::Value = serde_json::from_str(line).unwrap();
        said["outcome"].as_str().unwrap().to_owned()
    };
    let refused = outcome(&running.line());
    let other = Clawbox::new(&scene.world, &policy).run(&[tool.as_str(), "tcp=v4.test:7"]);
    assert_eq!(outcome(other.stdout.trim()), "ok", "{other:?}");
    full.empty(&running);
    running.say("go");
    assert_eq!(outcome(&running.line()), "ok");
    let run = running.wait();
    let denied = run.denials();
    assert_eq!(refused, "EPERM", "{denied:?}");
    let told = |reason: &str| denied.iter().any(|record| record["reason"] == reason);
    assert!(told("table-full") && told("no-identity"), "{denied:#?}");
    // Already the socket is refused to nobody.
    let of_network = |record: &&serde_json::Value| record["class"] == "network";
    let refusals: Vec<_> = denied.iter().copied().filter(of_network).collect();
    layer::tell(12, "a full table", Layer::observed(&refused, &refusals));
}

/// As root, under a policy that opens the hierarchy: neither the table nor the cgroup says whose the
/// child is.
#[test]
fn where_the_table_is_full_a_child_outside_the_cgroup_is_denied_and_so_is_its_own() {
    let scene = Scene::new();
    let (tool, policy) = only_tool(&scene);
    let procs = cgroup_root().join("cgroup.procs").display().to_string();
    let open = format!("[/dev/null, {}]", cgroup_root().display());
    let policy = policy.replace("[/dev/null]", &open);
    let attempt = format!("{tool} tcp=198.18.0.1:7");
    // A subshell connects by itself, and then a child of it: neither goes through exec.
    // By the real address, which nobody in the sandbox may dial and everybody outside may.
    let connect = format!("exec 3<>/dev/tcp/{SITE}/7 && echo ok || echo refused");
    let script = format!(
        "{tool} resolve=v4.test; echo 0 >{procs}; read a; \
         ( {connect} ) 2>/dev/null; ( : ; ( {connect} ); : ) 2>/dev/null; read a; {attempt}"
    );
    let mut running = Clawbox::new(&scene.world, &policy)
        .user(None)
        .argument("--share=cgroup")
        .spawn(&["/usr/bin/bash", "-c", &script]);
    running.line();
    let full = FullTable::of(&running);
    running.say("go");
    let said = [running.line(), running.line()];
    full.empty(&running);
    running.say("go");
    let allowed = running.line();
    let run = running.wait();
    assert_eq!(said, ["refused", "refused"], "{run:?}");
    assert!(allowed.contains("\"ok\""), "{allowed} {run:?}");
    let denied = run.denials();
    let of_nobody = |record: &&&serde_json::Value| record["reason"] == "no-identity";
    assert!(denied.iter().filter(of_nobody).count() >= 2, "{denied:#?}");
    assert_eq!(scene.echo.arrivals().len(), 1);
}

#[test]
fn a_process_that_moves_to_another_cgroup_stays_under_its_policy() {
    let scene = Scene::new();
    let (tool, policy) = only_tool(&scene);
    let root = cgroup_root();
    let procs = root.join("cgroup.procs").display().to_string();
    // As nobody, it may not even open the file.
    let attack = scene.attack();
    let leave = format!("write={procs},0");
    let account = scene.attack_with(&policy, &[&leave, "tcp=v4.test:7"]);
    account.expect(&[(&leave, "EACCES"), ("tcp=v4.test:7", "EPERM")]);
    let of_file = |record: &&serde_json::Value| record["class"] == "file";
    let refused: Vec<_> = account.run.denials().into_iter().filter(of_file).collect();
    layer::tell(31, "moving to the root's cgroup", Layer::observed("EACCES", &refused));
    // As root, under a policy that opens the hierarchy to it, it may; and gains nothing.
    let open = policy.replace("[/dev/null]", &format!("[/dev/null, {}]", root.display()));
    // In a cgroup namespace of its own some hosts (nsdelegate) would not let it.
    let run = Clawbox::new(&scene.world, &open).user(None).argument("--share=cgroup").run(&[
        "/bin/sh",
        "-c",
        &format!(
            "{attack} {leave} tcp=v4.test:7; \
             echo 0 >{procs} && {attack} in-child exec {attack} tcp=v4.test:7; {tool} tcp=v4.test:7"
        ),
    ]);
    let account = Account::of(run);
    account.expect(&[
        (&leave, "ok"),
        ("tcp=v4.test:7", "EPERM"),
        ("tcp=v4.test:7", "EPERM"),
        ("tcp=v4.test:7", "ok"),
    ]);
    account.record("connect", "other-binary", &attack, site());
    account.tell(&[
        (0, ""),
        (31, "what root does after it has moved"),
        (31, "what its child does"),
        (0, ""),
    ]);
    assert_eq!(scene.echo.arrivals().len(), 1);
}

#[test]
fn the_hierarchy_of_cgroups_is_not_the_sandboxs_to_write() {
    let scene = Scene::new();
    let root = cgroup_root();
    let at = |name: &str| root.join(name).display().to_string();
    let tries = [
        hostile(31, "a cgroup made", format!("os.mkdir('{}')", at("clawbox-attack"))),
        hostile(31, "its own cgroup's processes written", {
            let own = "open('/proc/self/cgroup').read().strip().split('::')[1]";
            format!("write('{}' + {own} + '/cgroup.procs')", root.display())
        }),
        hostile(
            31,
            "the kill switch of all sandboxes",
            format!("write('{}')", at("clawbox/cgroup.kill")),
        ),
        hostile(
            31,
            "a limit of the hierarchy",
            format!("write('{}')", at("cgroup.subtree_control")),
        ),
    ];
    for user in [Some("nobody"), None] {
        let tried = attempts(|| Clawbox::new(&scene.world, &scene.policy("")).user(user), &tries);
        assert_eq!(got_through(&tries, &tried).count(), 0, "{tried:#?}");
        assert!(tried.iter().all(|tried| !tried.denials.is_empty()), "{tried:#?}");
    }
    assert!(!root.join("clawbox-attack").exists());
}

/// A kernel that is preempted inside a hook leaves out the hook's next run on that CPU (7.x). What
/// is then in the table is written here: by hand, because no test can bring a preemption about.
#[test]
fn an_identity_of_another_process_or_of_the_program_before_is_nobodys() {
    // Added to the count of execs and to the birth.
    for (outcome, execs, born) in [("ok", 0, 0), ("EPERM", 1, 0), ("EPERM", 0, 1)] {
        let scene = Scene::new();
        let policy = scene.allowing_attack("{ host: v4.test, port: 7 }");
        let attack = scene.attack();
        // The address that is handed out first, so that nothing is asked after the change.
        let steps = [attack.as_str(), "resolve=v4.test", "line", "tcp=198.18.0.1:7"];
        let mut running = Clawbox::new(&scene.world, &policy).spawn(&steps);
        running.line();
        let pinned = MapData::from_pin(running.pins().join("SUBJECTS")).unwrap();
        let mut subjects: HashMap<_, u32, Subject> =
            HashMap::try_from(Map::HashMap(pinned)).unwrap();
        let (process, mut subject) = subjects.iter().next().unwrap().unwrap();
        subject.incarnation.execs += execs;
        subject.incarnation.born += born;
        subjects.insert(process, subject, 0).unwrap();
        reseat(process, subject);
        running.say("go");
        let run = running.wait();
        let last: serde_json::Value =
            serde_json::from_str(run.stdout.lines().last().unwrap()).unwrap();
        assert_eq!(last["outcome"], outcome, "{run:?}");
        if outcome == "EPERM" {
            let denied = run.denials();
            assert!(denied.iter().all(|record| record["reason"] == "no-identity"), "{denied:?}");
            assert!(!denied.is_empty());
            let whose = if born == 0 { "of the program before" } else { "of another process" };
            let attack = format!("an identity {whose}");
            layer::tell(11, &attack, Layer::observed(outcome, &denied));
            scene.nothing_arrived();
        }
    }
}

/// Writes an identity to its process's seat, in the one of all running sandboxes that has the process.
fn reseat(process: u32, subject: Subject) {
    let seats = loaded_maps().filter_map(Result::ok).filter(|map| map.name() == b"SEATS");
    let mut taken = seats.filter_map(|map| {
        let map = MapData::from_id(map.id()).ok()?;
        // Of another build, which somebody has left.
        let mut seats: Array<_, Seat> = Array::try_from(Map::Array(map)).ok()?;
        let at = process & (SEATS - 1);
        let seat = seats.get(&at, 0).unwrap();
        (seat.group == u64::from(process))
            .then(|| seats.set(at, Seat { subject, ..seat }, 0).unwrap())
    });
    assert_eq!(taken.by_ref().count(), 1, "one sandbox has process {process}");
}
