//! What `clawbox why` offers for a denial, taken as it is offered: ports, programs and Unix sockets. Each is
//! denied, explained, written into the policy beside its comments, and goes on. And which sockets are learned.

use std::fs;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::PathBuf;

use clawbox_tests::clawbox::{Clawbox, Finished};
use serde_json::{Value, json};

use crate::attacks::attempt::PYTHON;
use crate::operator::clawbox;
use crate::scene::Scene;

/// A policy's file with a comment, and a sandbox's trail.
struct Case<'s> {
    scene: &'s Scene,
    policy: PathBuf,
    trail: PathBuf,
    has_lsm: bool,
}

impl<'s> Case<'s> {
    fn of(scene: &'s Scene, text: &str, has_lsm: bool) -> Self {
        let place = scene.world.private();
        let (policy, trail) = (place.join("agent.yaml"), place.join("agent.jsonl"));
        fs::write(&policy, format!("{text}\n# Mine.\n")).unwrap();
        Self { scene, policy, trail, has_lsm }
    }

    fn run(&self, words: &[&str]) -> Finished {
        self.prepared().without_refusals().run(words)
    }

    fn prepared(&self) -> Clawbox<'_> {
        let _ = fs::remove_file(&self.trail);
        let run = Clawbox::with_policy_file(&self.scene.world, self.policy.clone());
        let run = run.with_lsm_if(self.has_lsm).without_trail();
        run.argument("--audit").argument(&self.trail)
    }

    /// All that is told of a denial for this reason.
    #[track_caller]
    fn told(&self, reason: &str) -> Value {
        self.told_of(&[reason])
    }

    /// The same for one of these, by which layer comes first on a kernel.
    #[track_caller]
    fn told_of(&self, reasons: &[&str]) -> Value {
        let trail = self.trail.to_str().unwrap();
        let words = ["why", "--trail", trail, "--all", "--format", "json"];
        let (status, out, err) = clawbox(&self.scene.world, &words);
        assert_eq!(status, 0, "{err}");
        let all: Vec<Value> = serde_json::from_str(&out).unwrap();
        let is_it = |told: &Value| reasons.iter().any(|reason| told["reason"] == *reason);
        let told = all.into_iter().find(is_it);
        told.unwrap_or_else(|| panic!("none of {reasons:?}: {out}"))
    }

    /// Has what is offered done, and sees to it that it is this, shown first, and beside what was there.
    #[track_caller]
    fn takes(&self, told: &Value, options: &str, shows: &[&str]) {
        let before = fs::read_to_string(&self.policy).unwrap();
        let expected = format!("clawbox policy allow {} {options}", self.policy.display());
        assert_eq!(told["command"], expected.as_str(), "{told:#}");
        let words: Vec<&str> = expected.split(' ').skip(1).collect();
        let (status, out, err) = clawbox(&self.scene.world, &[&words[..], &["--dry-run"]].concat());
        assert_eq!(status, 0, "{out}{err}");
        assert_eq!(fs::read_to_string(&self.policy).unwrap(), before, "it is only shown");
        for line in shows {
            assert!(out.lines().any(|shown| shown.trim_end() == *line), "`{line}`: {out}");
        }
        let (status, out, err) = clawbox(&self.scene.world, &[&words[..], &["--yes"]].concat());
        assert_eq!(status, 0, "{out}{err}");
        let after = fs::read_to_string(&self.policy).unwrap();
        assert!(after.contains("# Mine.") && after != before, "{after}");
        // It is there, and said so.
        let (status, _, err) = clawbox(&self.scene.world, &[&words[..], &["--yes"]].concat());
        assert!(status == 0 && err.contains("allows it already"), "{err}");
        assert_eq!(fs::read_to_string(&self.policy).unwrap(), after);
    }
}

#[test]
fn a_port_that_was_refused_is_listened_on_after_the_command_that_is_offered() {
    let scene = Scene::new();
    let case = Case::of(&scene, &scene.policy(""), false);
    let attack = scene.attack();
    let bind = |step: &str| {
        let run = case.run(&[&attack, step]);
        let said: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|_| panic!("{run:?}"));
        said["outcome"].as_str().unwrap().to_owned()
    };
    assert_eq!(bind("bind=127.0.0.1:8080"), "EPERM");
    let told = case.told("listen-not-allowed");
    assert!(told["layer"].as_str().unwrap().starts_with("cgroup hooks"), "{told}");
    assert_eq!(told["explained"]["nearest"], Value::Null, "there is no `listen` yet: {told}");
    let fresh = ["+listen:", "+    ports: [8080]", "+    addresses: [\"127.0.0.1\"]"];
    case.takes(&told, "--listen 127.0.0.1:8080", &fresh);
    assert_eq!(bind("bind=127.0.0.1:8080"), "ok");

    // Another port, at every address: that is told.
    assert_eq!(bind("bind=0.0.0.0:8081"), "EPERM");
    let told = case.told("listen-not-allowed");
    let differs = json!(["port 8081 is not 8080", "address 0.0.0.0 is not 127.0.0.1"]);
    assert_eq!(told["explained"]["nearest"]["differs"], differs);
    let remarks = told["explained"]["remarks"].as_array().unwrap();
    assert!(remarks.iter().any(|remark| remark.as_str().unwrap().contains("other machines")));
    let wider = ["+    ports: [8080, 8081]", "+    addresses: [\"127.0.0.1\", \"0.0.0.0\"]"];
    case.takes(&told, "--listen 0.0.0.0:8081", &wider);
    assert_eq!(bind("bind=0.0.0.0:8081"), "ok");

    // A port of the kernel's choice is no policy's to open.
    assert_eq!(bind("bind=127.0.0.1:0"), "EPERM");
    assert_eq!(case.told("listen-not-allowed")["command"], Value::Null);
}

#[test]
fn a_program_that_was_refused_starts_after_the_command_that_is_offered() {
    let scene = Scene::new();
    let listing = "execution: { allow: [/bin/sh, /usr/bin/true] }";
    let policy = scene.policy(listing).replace("execution: { from_writable: allow }\n", "");
    let has_lsm = scene.has_lsm();
    let case = Case::of(&scene, &policy, has_lsm);
    let made = fs::canonicalize(scene.world.work()).unwrap().join("made");
    let made = made.display().to_string();
    fs::copy("/usr/bin/true", &made).unwrap();
    let policy = case.policy.display().to_string();
    // Without BPF LSM it is not refused, and what would be is asked about.
    let refused = |reason: &str, program: &str| {
        if has_lsm {
            assert_eq!(case.run(&["/bin/sh", "-c", program]).status, 126);
            return case.told(reason);
        }
        let words = ["why", "--policy", &policy, "sh", "--execute", program, "--format", "json"];
        let (status, out, err) = clawbox(&scene.world, &words);
        assert_eq!(status, 0, "{err}");
        serde_json::from_str(&out).unwrap()
    };
    let head = fs::canonicalize("/usr/bin/head").unwrap().display().to_string();
    let told = refused("unlisted-program", &head);
    assert_eq!(
        (&told["reason"], &told["layer"]),
        (&json!("unlisted-program"), &json!("BPF LSM (kernel)"))
    );
    let differs = json!([format!("program {head} is not /usr/bin/true")]);
    assert_eq!(told["explained"]["nearest"]["differs"], differs);
    let listed = "+execution: { allow: [/bin/sh, /usr/bin/true, \"/usr/bin/head\"] }";
    case.takes(&told, &format!("--execute {head}"), &[listed]);
    if has_lsm {
        assert_eq!(case.run(&["/bin/sh", "-c", &format!("{head} -n0 /dev/null")]).status, 0);
    }

    // What the sandbox could have written takes more than a list.
    if has_lsm {
        let work = fs::canonicalize(scene.world.work()).unwrap().display().to_string();
        let open = scene.policy("").replace("execution: { from_writable: allow }\n", "# Mine.\n");
        let open = open.replace("[/dev/null]", &format!("[/dev/null, {work}]"));
        fs::write(&case.policy, open).unwrap();
        let told = refused("writable-program", &made);
        let nearest = told["explained"]["nearest"]["differs"][0].as_str().unwrap();
        assert_eq!(nearest, "what may be written there may not be started");
        let words = ["policy", "allow", &policy, "--execute", &made, "--yes"];
        let (status, _, err) = clawbox(&scene.world, &words);
        assert!(status == 2 && err.contains("--from-writable"), "{err}");
        let options = format!("--execute {made} --from-writable --workdir {work}");
        case.takes(&told, &options, &[]);
        assert_eq!(case.run(&["/bin/sh", "-c", &made]).status, 0);
    }
}

#[test]
fn the_directory_of_the_run_is_what_a_policy_opens_wherever_its_trail_is_read() {
    let scene = Scene::new();
    let work = fs::canonicalize(scene.world.work()).unwrap().display().to_string();
    let (open, closed) =
        (scene.policy(""), scene.policy("").replace("workdir: true", "workdir: false"));
    let case = Case::of(&scene, &closed, scene.has_lsm());
    let script = format!("true {work}; echo word > {work}/word");
    let run = case.prepared().run(&["/bin/sh", "-c", &script]);
    assert_ne!(run.status, 0, "{run:?}");
    fs::write(&case.policy, open).unwrap();
    let told = case.told_of(&["unknown-file", "landlock", "refused"]);
    assert_eq!(told["event"]["workdir"], work.as_str(), "{told}");
    assert_eq!(told["explained"]["verdict"], "allow", "{told}");
    let replay = |options: &[&str]| {
        let [policy, trail] = [&case.policy, &case.trail].map(|path| path.to_str().unwrap());
        let words = [&["policy", "replay", trail, "--policy", policy], options].concat();
        clawbox(&scene.world, &words)
    };
    let (status, out, err) = replay(&[]);
    assert!(status == 1 && out.starts_with("would be allowed"), "{out}{err}");
    let (status, out, err) = replay(&["--workdir", "/srv"]);
    assert!(status == 0 && out.contains("0 kinds would change"), "{out}{err}");
}

#[test]
fn a_program_below_the_directory_of_the_run_starts_after_the_command_that_is_offered_elsewhere() {
    let scene = Scene::new();
    if !scene.has_lsm() {
        return;
    }
    let policy = scene.policy("").replace("execution: { from_writable: allow }\n", "");
    let case = Case::of(&scene, &policy, true);
    let work = fs::canonicalize(scene.world.work()).unwrap().display().to_string();
    let made = format!("{work}/made");
    fs::copy("/usr/bin/true", &made).unwrap();
    assert_eq!(case.run(&["/bin/sh", "-c", &made]).status, 126);
    let told = case.told("writable-program");
    case.takes(&told, &format!("--execute {made} --from-writable --workdir {work}"), &[]);
    assert_eq!(case.run(&["/bin/sh", "-c", &made]).status, 0);
}

#[test]
fn a_unix_socket_that_was_refused_is_reached_after_the_command_that_is_offered() {
    let scene = Scene::new();
    let has_lsm = scene.has_lsm();
    let service = scene.world.bin().join("service");
    let _listening = UnixListener::bind(&service).unwrap();
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(&service, everybody).unwrap();
    let service = service.display().to_string();
    let case = Case::of(&scene, &scene.policy(""), has_lsm);
    let script = format!(
        "import socket; socket.socket(socket.AF_UNIX).connect('{service}'); print('reached')"
    );
    let policy = case.policy.display().to_string();
    let told = if has_lsm {
        assert_eq!(case.run(&[PYTHON, "-c", &script]).stdout, "");
        // Newer kernels have Landlock hold sockets too, which comes first.
        case.told_of(&["read-only", "landlock"])
    } else {
        let words = ["why", "--policy", &policy, "any", "--socket", &service, "--format", "json"];
        let (status, out, err) = clawbox(&scene.world, &words);
        assert_eq!(status, 0, "{err}");
        serde_json::from_str(&out).unwrap()
    };
    let of_policy = if has_lsm { &told["explained"]["reason"] } else { &told["reason"] };
    assert_eq!(of_policy, "read-only", "{told}");
    let fresh = ["+unix_sockets:", "+    allow:", &format!("+      - \"{service}\"")];
    case.takes(&told, &format!("--socket {service}"), &fresh);
    assert_eq!(case.run(&[PYTHON, "-c", &script]).stdout, "reached\n");
}

#[test]
fn the_unix_sockets_that_a_command_reaches_are_learned_but_for_those_by_which_others_act() {
    let scene = Scene::new();
    let world = &scene.world;
    let place = fs::canonicalize(world.bin()).unwrap();
    let socket = |path: &str| {
        let path = place.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let listening = UnixListener::bind(&path).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        (listening, path.display().to_string())
    };
    let (_database, database) = socket("database");
    let (_agent, agent) = socket("ssh-x/agent.1");
    let journal = place.join("journal");
    let _journal = UnixDatagram::bind(&journal).unwrap();
    fs::set_permissions(&journal, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let journal = journal.display().to_string();
    let script = format!(
        "import os, socket\n\
         def reach(path, kind=socket.SOCK_STREAM): socket.socket(socket.AF_UNIX, kind).connect(path)\n\
         reach('{database}'); os.chdir('{}'); reach('database'); reach('{agent}')\n\
         sends = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
         sends.sendto(b'x', '{journal}'); sends.sendmsg([b'x'], [], 0, 'journal')\n\
         reach('journal', socket.SOCK_DGRAM)\n\
         own = socket.socket(socket.AF_UNIX); own.bind('\\0own'); own.listen(); reach('\\0own')\n\
         print('reached')",
        place.display()
    );
    let directory = world.private();
    let path = |name: &str| directory.join(name).display().to_string();
    let (policy, trail, workdir) = (path("learned.yaml"), path("learn.jsonl"), world.work());
    let workdir = workdir.to_str().unwrap();
    let words =
        ["learn", "--user", "nobody", "--workdir", workdir, "-o", &policy, "--audit", &trail];
    let (status, out, err) = clawbox(world, &[&words[..], &["--", PYTHON, "-c", &script]].concat());
    assert_eq!((status, out.as_str()), (0, "reached\n"), "{err}");
    let text = fs::read_to_string(&policy).unwrap();
    let program = fs::canonicalize(PYTHON).unwrap();
    let program = program.file_name().unwrap().to_str().unwrap();
    let learned = format!(
        "unix_sockets:\n  allow:\n    # seen: reached 2 times, by {program}\n    - \"{database}\"\n    \
         # seen: reached 3 times, by {program}\n    - \"{journal}\"\n"
    );
    assert!(text.contains(&learned), "{learned}: {text}");
    let dangerous = format!("reaches the Unix socket {agent}: an ssh agent");
    for told in [&dangerous, &format!("policy allow {policy} --socket {agent}")] {
        assert!(err.contains(told), "{told}: {err}");
    }
    assert!(text.contains(&dangerous) && !text.contains(&format!("- \"{agent}\"")), "{text}");
    assert!(
        err.contains("and 2 Unix sockets") && err.contains("Unix socket @: it has no path"),
        "{err}"
    );
    let (status, out, err) = clawbox(world, &["policy", "lint", &policy]);
    assert_eq!(status, 0, "{out}{err}");

    // Under it the database is reached; the agent's socket where nothing but BPF LSM would hold it.
    let has_lsm = scene.has_lsm();
    let run = Clawbox::with_policy_file(world, policy.clone().into()).with_lsm_if(has_lsm);
    let run = run.run(&[PYTHON, "-c", &script]);
    assert_eq!(run.stdout == "reached\n", !has_lsm, "{run:?} {text}");
    let of_sockets = run.records("unix-socket");
    let paths = of_sockets.iter().map(|record| record["object"]["path"].as_str().unwrap());
    let paths: Vec<&str> = paths.collect();
    assert_eq!(paths, if has_lsm { vec![agent.as_str()] } else { vec![] }, "{run:?}");
}
