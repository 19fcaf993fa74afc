//! Settings of each client in temporary files, and where they lead to.

use super::*;

struct Files(tempfile::TempDir);

impl Files {
    fn with(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = directory.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Self(directory)
    }

    /// A machine without clients, so that only what is written counts.
    fn machine(&self, variables: &[(&str, &str)]) -> Machine {
        let variable = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Machine {
            root: self.0.path().into(),
            home: self.0.path().join("home"),
            variables: variables.iter().map(variable).collect(),
            path: String::new(),
        }
    }
}

#[track_caller]
fn check(client: HostFrom, files: &[(&str, &str)], variables: &[(&str, &str)], expected: &[&str]) {
    let files = Files::with(files);
    let servers = files.machine(variables).servers(client).unwrap();
    let servers: Vec<String> =
        servers.into_iter().map(|at| format!("{} {}", at.host, at.port)).collect();
    assert_eq!(servers, expected);
}

#[test]
fn pip_is_read_from_its_variables_and_the_first_of_its_files() {
    let own = ("home/.config/pip/pip.conf", "[global]\nindex-url = https://own.example/simple\n");
    let system = (
        "etc/pip.conf",
        "# company\n[global]\nindex_url = https://u:secret@pip.example:8443/simple\nextra-index-url =\n    \
         https://one.example/simple\n    http://two.example/simple\n",
    );
    check(
        HostFrom::Pip,
        &[system],
        &[],
        &["pip.example 8443", "one.example 443", "two.example 80"],
    );
    check(
        HostFrom::Pip,
        &[own, system],
        &[("PIP_EXTRA_INDEX_URL", "http://[fd00::1]:3141/x")],
        &["own.example 443", "fd00::1 3141"],
    );
    let variable = [("PIP_INDEX_URL", "https://variable.example/")];
    check(HostFrom::Pip, &[own], &variable, &["variable.example 443"]);
    let install = (
        "etc/pip.conf",
        "[global]\nindex-url=http://a.example\n[install]\nindex-url=http://b.example\n",
    );
    check(HostFrom::Pip, &[install], &[], &["b.example 80"]);
}

#[test]
fn npm_is_read_with_the_registries_of_its_scopes() {
    let own = (
        "home/.npmrc",
        "; company\n//npm.example/:_authToken=secret\nregistry = \"https://npm.example/all/\"\n\
         @team:registry=https://team.example:4873\n",
    );
    let system =
        ("etc/npmrc", "registry=https://system.example\n@team:registry=https://x.example\n");
    check(HostFrom::Npm, &[own, system], &[], &["npm.example 443", "team.example 4873"]);
    check(HostFrom::Npm, &[system], &[], &["system.example 443", "x.example 443"]);
    let variable = [("npm_config_registry", "http://127.0.0.1:4873/")];
    check(HostFrom::Npm, &[], &variable, &["127.0.0.1 4873"]);
}

#[test]
fn cargo_is_followed_to_what_replaces_its_registry_and_to_its_files() {
    let replaced = (
        "home/.cargo/config.toml",
        "[source.crates-io]\nreplace-with = 'mirror'\n[source.mirror]\nregistry = \
         'sparse+https://index.example/git/'\n[registries.own]\nindex = \
         'https://own.example:8443/index'\n",
    );
    let used = (
        "home/.cargo/registry/index/index.example-0011aa/config.json",
        r#"{"dl":"https://files.example/{crate}"}"#,
    );
    check(HostFrom::Cargo, &[replaced], &[], &["index.example 443", "own.example 8443"]);
    check(
        HostFrom::Cargo,
        &[replaced, used],
        &[],
        &["index.example 443", "own.example 8443", "files.example 443"],
    );
    check(HostFrom::Cargo, &[used], &[], &["index.example 443", "files.example 443"]);
}

#[test]
fn apt_is_read_in_both_ways_to_write_a_source() {
    let lines = (
        "etc/apt/sources.list",
        "# deb http://comment.example x y\ndeb [arch=amd64 trusted=yes] http://line.example/debian stable main\n\
         deb-src https://source.example:8443/debian stable main\ndeb file:/srv/disk stable main\n",
    );
    let paragraphs = (
        "etc/apt/sources.list.d/own.sources",
        "Types: deb\nURIs: https://one.example/debian\n  https://two.example/debian\nSuites: x\n\n\
         Enabled: no\nTypes: deb\nURIs: https://off.example\n\n# end\nTypes: deb\nURIs: http://three.example/\n",
    );
    let ignored = ("etc/apt/sources.list.d/old.list.save", "deb http://old.example x y\n");
    check(HostFrom::Apt, &[lines], &[], &["line.example 80", "source.example 8443"]);
    check(
        HostFrom::Apt,
        &[paragraphs, ignored],
        &[],
        &["one.example 443", "two.example 443", "three.example 80"],
    );
}

#[test]
fn without_settings_and_client_the_error_says_what_to_do_and_a_secret_is_in_none() {
    for (client, says) in [
        (HostFrom::Pip, "pip config set"),
        (HostFrom::Npm, "npm config set"),
        (HostFrom::Cargo, "cargo fetch"),
        (HostFrom::Apt, "sources.list.d"),
    ] {
        let error = Files::with(&[]).machine(&[]).servers(client).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
    for url in
        ["https://user:secret@*.example/", "ftps://u:secret@x", "secret", "https://secret:0/"]
    {
        let files = Files::with(&[]);
        let error = files.machine(&[("PIP_INDEX_URL", url)]).servers(HostFrom::Pip).unwrap_err();
        assert!(!error.contains("secret"), "{error}");
    }
}

#[test]
fn a_source_that_replaces_itself_ends_in_an_error() {
    let circle = "[source.crates-io]\nreplace-with='a'\n[source.a]\nreplace-with='b'\n[source.b]\nreplace-with='a'\n";
    let files = Files::with(&[("home/.cargo/config.toml", circle)]);
    assert!(files.machine(&[]).servers(HostFrom::Cargo).unwrap_err().contains("replaces itself"));
    let directory = "[source.crates-io]\nreplace-with='v'\n[source.v]\ndirectory='vendor'\n";
    let files = Files::with(&[("home/.cargo/config.toml", directory)]);
    assert!(files.machine(&[]).servers(HostFrom::Cargo).unwrap_err().contains("needs no network"));
}
