//! Row 30: files that were open before: inherited at the start, received later, or opened under a
//! policy that has been narrowed since.

use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;

use clawbox_tests::clawbox::{Clawbox, Running};
use clawbox_tests::layer::{self, Layer};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::Value;

use super::attempt::{ATTACKER, FIRST_MARK, PYTHON, answer, marked};
use crate::live;
use crate::scene::Scene;

/// A file of the host that no policy of a test opens, although everybody may read it.
fn secret(scene: &Scene) -> std::fs::File {
    let path = scene.world.work().parent().unwrap().join("secret");
    std::fs::write(&path, "secret").unwrap();
    std::fs::File::open(&path).unwrap()
}

#[test]
fn a_descriptor_that_clawbox_inherits_is_not_the_commands() {
    let scene = Scene::new();
    let file = secret(&scene);
    let script = "import os; print(os.read(9, 6))";
    let mut command =
        Clawbox::new(&scene.world, &scene.policy("")).command(&[PYTHON, "-c", script]);
    let number = file.as_raw_fd();
    // SAFETY: the closure makes one system call with numbers.
    unsafe {
        command.pre_exec(move || {
            nix::errno::Errno::result(nix::libc::dup2(number, 9))?;
            Ok(())
        });
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.stdout.is_empty() && said.contains("Bad file descriptor"), "{output:?}");
    layer::tell(30, "an inherited descriptor", Layer::Start);
}

/// Receives a descriptor on its standard input and reads what it stands for.
const RECEIVES: &str = "
import os, socket
name, descriptors, flags, sender = socket.recv_fds(socket.socket(fileno=0), 9, 1)
print(os.read(descriptors[0], 6).decode() if descriptors else 'nothing', flush=True)
";

#[test]
fn a_descriptor_that_comes_from_outside_is_judged_when_it_comes() {
    let scene = Scene::new();
    let has_lsm = scene.has_lsm();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let file = secret(&scene);
    let descriptors = [file.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(ours.as_raw_fd(), &[IoSlice::new(b"x")], &message, MsgFlags::empty(), None)
        .unwrap();
    let clawbox = Clawbox::new(&scene.world, &scene.policy("")).with_lsm_if(has_lsm);
    let run = clawbox.stdin(std::os::fd::OwnedFd::from(theirs)).run(&[PYTHON, "-c", RECEIVES]);
    let outcome = match run.stdout.trim() {
        "secret" => "ok",
        "nothing" => "EACCES",
        _ => panic!("{run:?}"),
    };
    let is_told = |record: &&Value| {
        record["class"] == "file"
            && record["object"]["path"].as_str().is_some_and(|path| path.ends_with("/secret"))
    };
    let denials: Vec<&Value> = run.denials().into_iter().filter(is_told).collect();
    assert_eq!(has_lsm, outcome != "ok", "{run:?}");
    assert_eq!(has_lsm, !denials.is_empty(), "{run:?}");
    layer::tell(30, "a descriptor received", Layer::observed(outcome, &denials));
}

/// Uses of a file that is open, and of what leads to it, each by its name.
const USES: [(&str, &str); 11] = [
    ("pread", "os.pread(fd, 1, 0)"),
    ("pwrite", "os.pwrite(fd, b'y', 0)"),
    ("mmap", "mmap.mmap(fd, 4096)"),
    ("sendfile", "os.sendfile(os.open('out', os.O_RDWR | os.O_CREAT), fd, 0, 1)"),
    ("copy_file_range", "os.copy_file_range(fd, os.open('out', os.O_RDWR | os.O_CREAT), 1)"),
    ("open", "os.close(os.open('secret', os.O_RDONLY))"),
    ("ftruncate", "os.ftruncate(fd, 4096)"),
    ("fchmod", "os.fchmod(fd, 0o600)"),
    ("link", "os.link('secret', 'other'); os.unlink('other')"),
    ("/proc/self/fd", "read('/proc/self/fd/%d' % fd)"),
    (
        "mprotect",
        "start = [int(line.split('-')[0], 16) for line in open('/proc/self/maps') \
         if '/tree/secret' in line][0]; call(10, ctypes.c_void_p(start), 4096, 3); \
         call(10, ctypes.c_void_p(start), 4096, 1)",
    ),
];

/// Makes each use of the open file and leaves a mark after each that is refused.
fn used(running: &mut Running) -> Vec<String> {
    let uses = USES.iter().zip(FIRST_MARK..);
    uses.map(|((_, code), number)| {
        let outcome = answer(running, code);
        if outcome != "ok" {
            assert_eq!(answer(running, &format!("mark({number})")), "EPERM");
        }
        outcome
    })
    .collect()
}

#[test]
fn narrowing_reaches_files_that_are_open_and_widening_gives_them_back() {
    let scene = Scene::new();
    let has_lsm = scene.has_lsm();
    let tree = scene.world.work().join("tree");
    std::fs::create_dir(&tree).unwrap();
    let root = tree.display().to_string();
    let wide = live::tree_policy(&scene, &root, "");
    let closed = live::tree_policy(&scene, &root, &format!("  deny: [{root}/secret]\n"));
    let clawbox = Clawbox::new(&scene.world, &wide).user(None).with_lsm_if(has_lsm);
    let mut running = clawbox.spawn(&[PYTHON, "-c", ATTACKER]);
    let open = format!(
        "os.chdir('{root}'); open('secret', 'w').write('x' * 5000); \
         fd = os.open('secret', os.O_RDWR); shared = mmap.mmap(fd, 4096, prot=mmap.PROT_READ)"
    );
    assert_eq!(answer(&mut running, &open), "ok");
    assert!(used(&mut running).iter().all(|outcome| outcome == "ok"));
    if !has_lsm {
        // Files are then Landlock's, which can be given nothing and taken nothing.
        let (_, said) = live::set(&scene, &running, &closed);
        assert_eq!(said["outcome"], "refused", "{said}");
        for ((name, _), outcome) in USES.iter().zip(used(&mut running)) {
            let attack = format!("{name} after the policy was narrowed");
            layer::tell(30, &attack, Layer::observed(&outcome, &[]));
        }
        return;
    }
    assert_eq!(live::changes(&scene, &running, &closed), 2);
    let after = used(&mut running);
    assert!(after.iter().all(|outcome| outcome == "EACCES"), "{after:?}");
    // What is not closed goes on, through a descriptor of before as well.
    assert_eq!(answer(&mut running, "write('out'); os.listdir('.')"), "ok");
    assert_eq!(live::changes(&scene, &running, &wide), 3);
    let again = used(&mut running);
    assert!(again.iter().all(|outcome| outcome == "ok"), "{again:?}");
    let run = running.wait();
    let changed: Vec<_> =
        run.records("policy").iter().map(|record| record["object"]["generation"].clone()).collect();
    assert_eq!(changed, [2, 3]);
    let denials = marked(&run);
    assert_eq!(denials.len(), USES.len());
    for ((name, _), denials) in USES.iter().zip(&denials) {
        let of_secret = |record: &&Value| {
            record["reason"] == "closed-file"
                && record["object"]["path"] == format!("{root}/secret").as_str()
        };
        let found: Vec<&Value> = denials.iter().filter(of_secret).collect();
        assert!(!found.is_empty(), "{name}: {denials:#?}");
        layer::tell(
            30,
            &format!("{name} after the policy was narrowed"),
            Layer::observed("EACCES", &found),
        );
    }
}
