//! Clients as they are, under a policy that names hosts, against servers as they are. On this machine's own
//! kernel: what each does with its sockets does not depend on the kernel.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clawbox_tests::clawbox::Clawbox;
use clawbox_tests::network::{NOBODY, SITE, World};
use tempfile::TempDir;

use crate::attacks::attempt::PYTHON;
use crate::scene::Scene;

const PATIENCE: Duration = Duration::from_secs(60);

/// HTTP, HTTPS and WebSocket; gRPC; git by SSH. Says when it serves.
const SERVES: &str = r#"
import asyncio, concurrent.futures, os, ssl, sys
import aiohttp.web, asyncssh, grpc
site, directory = sys.argv[1:]
async def hello(request): return aiohttp.web.Response(text="hello\n")
async def echo(request):
    socket = aiohttp.web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket: await socket.send_str(message.data)
    return socket
class Anybody(asyncssh.SSHServer):
    def begin_auth(self, user): return False
async def git(process):
    command, path = process.command.split(" ", 1)
    child = await asyncio.create_subprocess_exec(command, path.strip("'"), stdin=-1, stdout=-1)
    await process.redirect(stdin=child.stdin, stdout=child.stdout)
    process.exit(await child.wait())
def answer(method, details): return grpc.unary_unary_rpc_method_handler(lambda asked, context: asked)
class Any(grpc.GenericRpcHandler):
    def service(self, details): return answer(None, details)
async def main():
    app = aiohttp.web.Application()
    app.add_routes([aiohttp.web.get("/", hello), aiohttp.web.get("/ws", echo)])
    app.router.add_static("/git", directory)
    runner = aiohttp.web.AppRunner(app)
    await runner.setup()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(directory + "/cert.pem", directory + "/key.pem")
    await aiohttp.web.TCPSite(runner, site, 80).start()
    await aiohttp.web.TCPSite(runner, site, 443, ssl_context=context).start()
    key = asyncssh.generate_private_key("ssh-ed25519")
    await asyncssh.listen(site, 22, server_factory=Anybody, server_host_keys=[key],
        process_factory=git, encoding=None)
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2), handlers=[Any()])
    server.add_insecure_port(site + ":50051")
    server.start()
    print("serving", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"#;

/// Every client, by name: what is run, and what it has to say in the end.
const CLIENTS: [(&str, &str, &str); 13] = [
    ("curl, http", "/usr/bin/curl -sS http://web.test/", "hello"),
    ("curl, https", "/usr/bin/curl -sS https://web.test/", "hello"),
    (
        "git, https",
        "/usr/bin/git clone -q https://web.test/git/project.git a && cat a/word",
        "cloned",
    ),
    (
        "git, ssh",
        "/usr/bin/git clone -q ssh://git@web.test/DIRECTORY/project.git b && cat b/word",
        "cloned",
    ),
    (
        "requests",
        "PYTHON -c \"import requests; print(requests.get('https://web.test/').text)\"",
        "hello",
    ),
    (
        "aiohttp",
        "PYTHON -c \"import aiohttp, asyncio, ssl\nasync def main():\n async with aiohttp.ClientSession() \
         as session:\n  async with session.get('https://web.test/') as got: print(await got.text())\n\
         asyncio.run(main())\"",
        "hello",
    ),
    (
        "WebSocket",
        "PYTHON -c \"import aiohttp, asyncio\nasync def main():\n async with aiohttp.ClientSession() as \
         session:\n  async with session.ws_connect('wss://web.test/ws') as socket:\n   await \
         socket.send_str('hello')\n   print((await socket.receive()).data)\nasyncio.run(main())\"",
        "hello",
    ),
    (
        "node fetch",
        "/usr/bin/node -e \"fetch('https://web.test/').then(got => got.text()).then(console.log)\"",
        "hello",
    ),
    (
        "gRPC",
        "PYTHON -c \"import grpc; print(grpc.insecure_channel('rpc.test:50051')\
         .unary_unary('/a/b')(b'hello', timeout=9).decode())\"",
        "hello",
    ),
    (
        "Redis",
        "redis-cli -h redis.test set word hello && redis-cli -h redis.test get word",
        "hello",
    ),
    ("PostgreSQL", "PSQL -h sql.test -U nobody -d postgres -Atc \"select 'hello'\"", "hello"),
    (
        "QUIC",
        "mkdir quic; gtlsclient --exit-on-all-streams-close --download=quic quic.test 4433 \
         https://quic.test:4433/word >said 2>&1; cat quic/word || tail -5 said >&2",
        "cloned",
    ),
    ("another host", "/usr/bin/curl -sS http://evil.test/ 2>&1", "curl: (6)"),
];

/// Servers on the far side, which end with this.
struct Servers {
    directory: TempDir,
    running: Vec<Child>,
    has_postgres: Option<PathBuf>,
}

impl Drop for Servers {
    fn drop(&mut self) {
        for server in &mut self.running {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn shell(directory: &Path, script: &str) {
    run(Command::new("/bin/sh").args(["-e", "-c", script]).current_dir(directory));
}

impl Servers {
    fn start(world: &World) -> Self {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        let path = directory.path();
        shell(
            path,
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
             -keyout key.pem -out cert.pem -subj /CN=web.test \
             -addext subjectAltName=DNS:web.test,DNS:quic.test 2>/dev/null; chmod 644 key.pem; \
             mkdir src; cd src; git init -q; echo cloned >word; git add .; \
             git -c user.name=t -c user.email=t@test -c commit.gpgsign=false commit -q -m first; \
             cd ..; git clone -q --bare src project.git; cd project.git; git update-server-info; \
             cd ..; mkdir htdocs; cp src/word htdocs/",
        );
        let has_postgres = std::fs::read_dir("/usr/lib/postgresql").ok().and_then(|versions| {
            let programs = versions.flatten().map(|version| version.path().join("bin"));
            programs.filter(|programs| programs.join("postgres").exists()).max()
        });
        let mut servers = Self { directory, running: Vec::new(), has_postgres };
        servers.serve(world);
        servers
    }

    fn serve(&mut self, world: &World) {
        let path = self.directory.path().to_owned();
        let site = SITE.to_string();
        let mut python = world.far_command(PYTHON);
        python
            .args(["-c", SERVES, &site])
            .arg(&path)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut python = python.env_remove("LD_LIBRARY_PATH").spawn().unwrap();
        let mut line = String::new();
        let said = python.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(said), &mut line).unwrap();
        assert_eq!(line, "serving\n");
        self.running.push(python);
        // Debian's redis-server is this very program, by the name it is called by.
        let mut redis = world.far_command("/usr/bin/redis-check-rdb");
        std::os::unix::process::CommandExt::arg0(&mut redis, "redis-server");
        redis.args(["--bind", &site, "--save", "", "--protected-mode", "no"]).current_dir(&path);
        self.running.push(redis.stdout(Stdio::null()).spawn().unwrap());
        let mut quic = world.far_command("gtlsserver");
        quic.args(["-q", "-d", "htdocs", &site, "4433", "key.pem", "cert.pem"]).current_dir(&path);
        self.running.push(quic.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        if let Some(programs) = self.has_postgres.clone() {
            self.postgres(world, &programs);
        }
        world.outside(|| until_open(&[(SITE, 6379)]));
    }

    fn postgres(&mut self, world: &World, programs: &Path) {
        let data = self.directory.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::fs::set_permissions(&data, Permissions::from_mode(0o700)).unwrap();
        chown(&data, Some(NOBODY), Some(NOBODY)).unwrap();
        let nobody = |command: &mut Command| {
            std::os::unix::process::CommandExt::uid(command, NOBODY);
            std::os::unix::process::CommandExt::gid(command, NOBODY);
        };
        let mut initdb = Command::new(programs.join("initdb"));
        initdb.args(["-A", "trust", "-U", "nobody", "-D"]).arg(&data).current_dir(&data);
        nobody(&mut initdb);
        run(&mut initdb);
        let access = format!("host all all {}/8 trust\n", "93.0.0.0");
        let file = data.join("pg_hba.conf");
        let before = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, before + &access).unwrap();
        // Enters the namespace as root, and is nobody from there on.
        let mut postgres = world.far_command("/usr/bin/setpriv");
        postgres
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(programs.join("postgres"))
            .args(["-h", &SITE.to_string(), "-k", "", "-D"])
            .arg(&data)
            .current_dir(&data)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.running.push(postgres.spawn().unwrap());
        world.outside(|| until_open(&[(SITE, 5432)]));
    }
}

/// Waits until somebody listens.
fn until_open(addresses: &[(std::net::Ipv4Addr, u16)]) {
    let since = std::time::Instant::now();
    for address in addresses {
        while std::net::TcpStream::connect(address).is_err() {
            assert!(since.elapsed() < PATIENCE, "{address:?}");
            std::thread::yield_now();
        }
    }
}

fn policy(scene: &Scene, servers: &Servers) -> String {
    scene
        .policy(
            "network_policies:\n  \
             web:\n    endpoints:\n      \
               - { host: web.test, ports: [443, 80], sni: verify }\n      \
               - { host: web.test, port: 22 }\n    \
             binaries: [{ path: /usr/bin/curl }, { path: /usr/bin/git }, { path: /usr/bin/python3 }, \
               { path: /usr/bin/node }]\n  \
             rpc:\n    endpoints: [{ host: rpc.test, port: 50051 }]\n    \
             binaries: [{ path: /usr/bin/python3 }]\n  \
             redis:\n    endpoints: [{ host: redis.test, port: 6379 }]\n    \
             binaries: [{ path: /usr/bin/redis-cli }]\n  \
             sql:\n    endpoints: [{ host: sql.test, port: 5432 }]\n    \
             binaries: [{ path: '/usr/lib/postgresql/*/bin/psql' }]\n  \
             quic:\n    endpoints: [{ host: quic.test, port: 4433, transport: udp }]\n    \
             binaries: [{ path: /usr/bin/gtlsclient }]",
        )
        .replace("/proc,", &format!("/proc, {}, /dev,", servers.directory.path().display()))
}

#[test]
fn real_clients_reach_the_servers_that_their_policy_names() {
    // What a guest has of programs is another test's.
    if std::env::var_os("CLAWBOX_TESTS_LSM").is_some() {
        return;
    }
    let scene = Scene::new();
    for name in ["web.test", "rpc.test", "redis.test", "sql.test", "quic.test", "evil.test"] {
        scene.names.host(name, &[SITE.into()]);
    }
    let servers = Servers::start(&scene.world);
    let directory = servers.directory.path().display().to_string();
    let psql = servers.has_postgres.as_ref().map(|programs| programs.join("psql"));
    let mut script = String::from(
        "export HOME=\"$PWD\" GIT_SSH_COMMAND='ssh -o StrictHostKeyChecking=no \
         -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -F none'\n",
    );
    let mut expected = Vec::new();
    for (name, command, said) in CLIENTS {
        let command = command.replace("PYTHON", PYTHON).replace("/DIRECTORY", &directory);
        let command = match &psql {
            Some(psql) => command.replace("PSQL", &psql.display().to_string()),
            None if command.contains("PSQL") => {
                eprintln!("SKIPPED PostgreSQL: there is no server on this machine");
                continue;
            }
            None => command,
        };
        script += &format!("echo '== {name}'; {command}\necho\n");
        expected.push((name, said));
    }
    let certificate = format!("{directory}/cert.pem");
    let mut clawbox = Clawbox::new(&scene.world, &policy(&scene, &servers)).patience(PATIENCE);
    for variable in [
        "CURL_CA_BUNDLE",
        "REQUESTS_CA_BUNDLE",
        "SSL_CERT_FILE",
        "NODE_EXTRA_CA_CERTS",
        "GIT_SSL_CAINFO",
    ] {
        clawbox = clawbox.variable(variable, &certificate);
    }
    let run = clawbox.run(&["/bin/bash", "-c", &script]);
    for (name, said) in expected {
        let part = run.stdout.split("== ").find(|part| part.starts_with(name)).unwrap_or_default();
        assert!(part.contains(said), "{name}: {part}\n{}\n{:#?}", run.stderr, run.denials());
    }
    let wrong: Vec<_> = run
        .denials()
        .into_iter()
        // glibc tries datagram sockets to sort addresses; gRPC tries to bind one, to see what there is.
        .filter(|record| record["action"] == "connect" && record["object"]["transport"] == "tcp")
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    // Each of the six that speak TLS to it was verified.
    let verified = run.records("verify");
    assert!(verified.len() >= 7, "{verified:#?}");
    assert!(verified.iter().all(|record| record["verdict"] == "allow"));
}
