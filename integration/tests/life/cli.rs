//! What people type: routes, log-level, help, version, and the health endpoint behind them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use integration::daemon::binary;
use integration::fixture::Two;
use integration::netns::Netns;
use integration::probe::udp;
use integration::suite::{Checks, Notes, Suite};
use integration::topology::Node;
use integration::wait;
use nix::sys::signal::Signal;
use serde_json::Value;

pub(super) fn suite() -> Checks {
    Suite::<Two>::new()
        .check("routes prints a table for people", table)
        .check("routes -o json counts packets, bytes and the time last seen", json)
        .check("log-level changes what is logged, and refuses nonsense", log_level)
        .check("logs are JSON lines on demand", json_log)
        .check("health, readiness and metrics answer over HTTP", http)
        .check("the metrics tell what was carried", metrics)
        .check("a terminal gets colour, unless it is refused", colour)
        .check("-o json and -o yaml of every command say the same", forms)
        .check("exit 0 is fine, 1 is found, 2 is not known: every command", exit_codes)
        .check("without a daemon the commands say so", no_daemon)
        .check("help: exit 0, lists flags and subcommands", help)
        .check("--version: exit 0, on standard error", version)
        .check("version -o json tells the build", version_verb)
        .check("install-conf copies a CNI configuration, under its own name too", install_conf)
        .check("cp copies a program over one that is there, and needs the folder to be there", cp)
        .check("install-conf leaves the target as it is when the source is no good", install_conf_refuses)
        .checks()
}

fn node(two: &Two) -> Result<&Node> {
    two.0.node("n1")
}

/// Ten echoes of 100 bytes each way.
fn talk(two: &Two) -> Result<()> {
    let (from, to) = (two.0.pod("n1.a")?, two.0.pod("n2.a")?);
    (0..10).try_for_each(|_| udp::echo(from.ns(), to.ip(), 100).map(|_| ()))
}

fn table(two: &mut Two, _: &Notes) -> Result<()> {
    talk(two)?;
    let text = node(two)?.flanneld(&["routes"])?.run()?;
    ensure!(!text.contains('\u{1b}'), "colour in a pipe: {text}");
    for part in ["n1", "n2", "192.168.77.2", "10.244.2.0/24", "active", "flannel0", "1472", "udp"] {
        ensure!(text.contains(part), "`{part}` is missing in\n{text}");
    }
    Ok(())
}

fn json(two: &mut Two, _: &Notes) -> Result<()> {
    let peer = || node(two)?.route("n2")?.context("no row for n2");
    let before = peer()?;
    talk(two)?;
    let after = wait::until("the counters have grown", || {
        let row = peer()?;
        let grown = |way: &str| Some(row[way]["packets"].as_u64()? - before[way]["packets"].as_u64()?);
        Ok((grown("tx") >= Some(10) && grown("rx") >= Some(10)).then_some(row))
    });
    let row = after?.0;
    let grown = |way: &str, what: &str| Some(row[way][what].as_u64()? - before[way][what].as_u64()?);
    ensure!(grown("tx", "packets") == Some(10) && grown("rx", "packets") == Some(10), "{before} then {row}");
    // IP and UDP headers and the word `echo ` on the way there; the way back is without the word.
    ensure!(
        grown("tx", "bytes") == Some(10 * 128) && grown("rx", "bytes") == Some(10 * 123),
        "{before} then {row}"
    );
    ensure!(row["last_seen_seconds_ago"].as_u64().is_some_and(|ago| ago < 60), "{row}");
    ensure!(row["last_seen"].as_str().is_some_and(|at| at.ends_with('Z')), "{row}");
    Ok(())
}

fn log_level(two: &mut Two, _: &Notes) -> Result<()> {
    let node = node(two)?;
    let daemon = node.daemon()?;
    node.flanneld(&["log-level", "debug"])?.run()?;
    daemon.wait_log("log level changed")?;
    // Following the underlay is no repair, and its steps are news for those who debug only.
    node.ns().ip("link set eth0 mtu 1400")?;
    daemon.wait_log("DEBUG")?;
    node.flanneld(&["log-level", "info"])?.run()?;
    node.ns().ip("link set eth0 mtu 1500")?;
    let bad = node.flanneld(&["log-level", "loud=very"])?.output()?;
    let said = String::from_utf8_lossy(&bad.stderr);
    ensure!(!bad.status.success() && said.contains("very"), "{}: {said}", bad.status);
    wait::until_true("ready", || Ok(daemon.get("/readyz")?.status == 200))?;
    Ok(())
}

fn json_log(two: &mut Two, _: &Notes) -> Result<()> {
    two.0.node_mut("n2")?.stop_daemon(Signal::SIGTERM)?;
    let daemon = two.0.launch("n2")?.set("--log-format", "json").spawn()?;
    two.0.node_mut("n2")?.adopt(daemon).wait_ready()?;
    let log = two.0.node("n2")?.daemon()?.log()?;
    for line in log.lines() {
        let event: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        ensure!(event["level"].is_string() && event["timestamp"].is_string(), "{line}");
    }
    ensure!(log.lines().count() > 3, "{log}");
    Ok(())
}

fn http(two: &mut Two, _: &Notes) -> Result<()> {
    let daemon = node(two)?.daemon()?;
    let healthy = daemon.get("/healthz")?;
    ensure!((healthy.status, healthy.body.as_str()) == (200, "flanneld is running"), "{healthy:?}");
    let ready = daemon.get("/readyz")?;
    ensure!((ready.status, ready.body.as_str()) == (200, "flanneld is ready"), "{ready:?}");
    ensure!(daemon.get("/nothing-here")?.status == 404);
    Ok(())
}

fn metrics(two: &mut Two, _: &Notes) -> Result<()> {
    let daemon = node(two)?.daemon()?;
    let before = daemon.metrics()?;
    talk(two)?;
    let after = daemon.metrics()?;
    let grown = |name: &str, way: &str| {
        after.sum(name, &[("direction", way)]) - before.sum(name, &[("direction", way)])
    };
    ensure!(grown("loden_packets_total", "tx") == 10.0 && grown("loden_packets_total", "rx") == 10.0);
    ensure!(grown("loden_bytes_total", "tx") == 1280.0 && grown("loden_bytes_total", "rx") == 1230.0);
    ensure!(after.sum("loden_leases", &[]) == 2.0 && after.sum("loden_build_info", &[]) == 1.0);
    for reason in ["bad_packet", "no_route", "own_prefix", "too_big", "family_unsupported", "unknown_sender"]
    {
        ensure!(
            after.has("loden_drops_total", &[("reason", reason)]),
            "no series for {reason} before the first drop"
        );
    }
    for object in ["link", "address", "route", "mtu", "firewall"] {
        ensure!(after.has("loden_repairs_total", &[("object", object)]), "no series for repairs of {object}");
    }
    let foreign: Vec<_> = after
        .names()
        .into_iter()
        .filter(|name| !name.starts_with("loden_") && !name.starts_with("process_"))
        .collect();
    ensure!(foreign.is_empty(), "names that do not begin with loden_: {foreign:?}");
    Ok(())
}

fn no_daemon(_: &mut Two, _: &Notes) -> Result<()> {
    let nowhere = Netns::new("nowhere")?;
    for subcommand in [&["routes"][..], &["routes", "-o", "json"], &["verify"], &["log-level", "debug"]] {
        let output = nowhere
            .command(binary()?)
            .args(subcommand)
            .args(["--subnet-file", "/run/lab/nowhere/subnet.env"])
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2), "{subcommand:?} ended with {}", output.status);
        ensure!(output.stdout.is_empty(), "{subcommand:?}: {output:?}");
        ensure!(said.contains("/run/lab/nowhere") && said.contains("--subnet-file"), "{said}");
    }
    Ok(())
}

fn help(_: &mut Two, _: &Notes) -> Result<()> {
    let nowhere = Netns::new("nowhere")?;
    for flag in ["--help", "-help", "-h"] {
        let output = nowhere.command(binary()?).arg(flag).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.code() == Some(0), "{flag} ended with {}", output.status);
        for part in
            ["--nodes-file", "--iface", "--subnet-file", "--ip-masq", "routes", "cleanup", "log-level"]
        {
            ensure!(text.contains(part), "`{part}` is missing in {flag}:\n{text}");
        }
    }
    Ok(())
}

fn version(_: &mut Two, _: &Notes) -> Result<()> {
    let nowhere = Netns::new("nowhere")?;
    for flag in ["--version", "-version", "--version=true"] {
        let output = nowhere.command(binary()?).arg(flag).output()?;
        ensure!(output.status.code() == Some(0) && output.stdout.is_empty(), "{flag}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(said.contains(env!("CARGO_PKG_VERSION")), "{flag}: {said}");
    }
    Ok(())
}

fn version_verb(_: &mut Two, _: &Notes) -> Result<()> {
    let nowhere = Netns::new("nowhere")?;
    let told = nowhere.command(binary()?).args(["version", "-o", "json"]).run()?;
    let told: Value = serde_json::from_str(&told).with_context(|| told.clone())?;
    ensure!(told["version"] == env!("CARGO_PKG_VERSION") && told["commit"].is_string(), "{told}");
    ensure!(told["protocol"] == 1 && told["arch"] == std::env::consts::ARCH, "{told}");
    ensure!(told["features"].is_array(), "{told}");
    let text = nowhere.command(binary()?).arg("version").run()?;
    ensure!(text.contains(env!("CARGO_PKG_VERSION")) && text.contains(std::env::consts::ARCH), "{text}");
    Ok(())
}

/// What `flanneld routes` prints on a terminal.
fn on_a_terminal(two: &Two, words: &str, env: Option<(&str, &str)>) -> Result<String> {
    let node = node(two)?;
    let (program, file) = (binary()?.display(), node.subnet_file());
    let line = format!("{program} routes --subnet-file {} {words}", file.display());
    let command = node.ns().command("script").args(["-qec", &line, "/dev/null"]);
    env.into_iter().fold(command, |command, (name, value)| command.env(name, value)).run()
}

fn colour(two: &mut Two, _: &Notes) -> Result<()> {
    for (words, env, wanted) in [
        ("", None, true),
        ("", Some(("NO_COLOR", "1")), false),
        ("", Some(("NO_COLOR", "")), true),
        ("--no-color", None, false),
        ("-o json", None, false),
    ] {
        let text = on_a_terminal(two, words, env)?;
        ensure!(text.contains('\u{1b}') == wanted, "`{words}` with {env:?}: {text:?}");
        ensure!(text.contains("n2"), "{text}");
    }
    Ok(())
}

fn forms(two: &mut Two, _: &Notes) -> Result<()> {
    let node = node(two)?;
    let (source, target) = (node.dir().join("forms.json"), node.dir().join("forms.conflist"));
    std::fs::write(&source, CNI)?;
    let paths = [source.display().to_string(), target.display().to_string()];
    let install = ["install-conf", &paths[0], &paths[1]];
    for (command, field) in [
        (&["routes"][..], "routes"),
        (&["verify"], "differences"),
        (&["log-level", "info"], "filter"),
        (&["version"], "version"),
        (&install, "target"),
    ] {
        let say = |form: &str| {
            let program = node.ns().command(binary()?).args(command).args(["-o", form]);
            let asks = ["routes", "verify", "log-level"].contains(&command[0]);
            let file = node.subnet_file().display().to_string();
            if asks { program.args(["--subnet-file", &file]) } else { program }.run()
        };
        let json: Value = serde_json::from_str(&say("json")?).with_context(|| format!("{command:?}"))?;
        ensure!(!json[field].is_null(), "{command:?}: no {field} in {json}");
        let yaml = say("yaml")?;
        ensure!(yaml.lines().any(|line| line.starts_with(&format!("{field}:"))), "{command:?}: {yaml}");
        ensure!(!say("text")?.is_empty(), "{command:?} prints nothing");
    }
    Ok(())
}

fn exit_codes(two: &mut Two, _: &Notes) -> Result<()> {
    let node = node(two)?;
    let code = |command: &[&str], file: bool| -> Result<(Option<i32>, String)> {
        let file = if file {
            vec!["--subnet-file".into(), node.subnet_file().display().to_string()]
        } else {
            vec![]
        };
        let output = node.ns().command(binary()?).args(command).args(file).output()?;
        Ok((output.status.code(), format!("{output:?}")))
    };
    for command in [&["routes"][..], &["verify"], &["log-level", "info"]] {
        let (fine, said) = code(command, true)?;
        ensure!(fine == Some(0), "{command:?}: {said}");
    }
    // What was found is in the tests of verify; nothing else looks for anything.
    for command in [
        &["routes"][..],
        &["verify"],
        &["log-level", "info"],
        &["cleanup"],
        &["install-conf"],
        &["cp"],
        &["version"],
    ] {
        let (bad, said) = code(&[command, &["--no-such-flag"]].concat(), false)?;
        ensure!(bad == Some(2) && said.contains("no-such-flag"), "{command:?}: {said}");
        let (help, text) = code(&[command[0], "--help"], false)?;
        ensure!(help == Some(0) && text.contains("Exit status: 0"), "{command:?}: {text}");
    }
    for command in [
        &["cleanup"][..],
        &["routes", "-o", "xml"],
        &["routes", "--timeout", "0"],
        &["log-level", "loud=very"],
    ] {
        let (refused, said) = code(command, true)?;
        ensure!(refused == Some(2), "{command:?}: {said}");
    }
    let (dance, said) = code(&["dance"], false)?;
    ensure!(dance == Some(2), "{said}");
    Ok(())
}

const CNI: &str = r#"{"name": "cbr0", "cniVersion": "0.3.1", "plugins": [{"type": "flannel"}]}"#;

fn install_conf(two: &mut Two, _: &Notes) -> Result<()> {
    let node = node(two)?;
    let (source, target) = (node.dir().join("cni-conf.json"), node.dir().join("net.d/10-flannel.conflist"));
    std::fs::write(&source, CNI)?;
    let helper = node.dir().join("install-conf");
    std::os::unix::fs::symlink(binary()?, &helper)?;
    for (program, arguments) in [(binary()?, &["install-conf"][..]), (&*helper, &[])] {
        let command = node.ns().command(program).args(arguments);
        let output = command.arg(&source).arg(&target).output()?;
        ensure!(output.status.success(), "{output:?}");
        ensure!(std::fs::read_to_string(&target)? == CNI);
        let left: Vec<_> = std::fs::read_dir(node.dir().join("net.d"))?.collect::<Result<_, _>>()?;
        ensure!(left.len() == 1, "{left:?}");
        let mode = std::fs::metadata(&target)?.permissions().mode();
        ensure!(mode & 0o777 == 0o644, "mode {mode:o}");
        std::fs::remove_file(&target)?;
    }
    Ok(())
}

fn cp(two: &mut Two, _: &Notes) -> Result<()> {
    let node = node(two)?;
    let (source, folder) = (node.dir().join("plugin"), node.dir().join("cni-bin"));
    std::fs::write(&source, b"\x7fELF \xff")?;
    std::fs::set_permissions(&source, std::fs::Permissions::from_mode(0o755))?;
    let helper = node.dir().join("cp");
    std::os::unix::fs::symlink(binary()?, &helper)?;
    let copy = |target: &Path| node.ns().command(&*helper).arg("-f").arg(&source).arg(target).output();

    let refused = copy(&folder.join("plugin"))?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(refused.status.code() == Some(2) && said.contains("mount the node's"), "{said}");

    std::fs::create_dir(&folder)?;
    std::fs::write(folder.join("plugin"), "old")?;
    let old = std::fs::File::open(folder.join("plugin"))?;
    // Also as the folder that the file goes into.
    for target in [folder.join("plugin"), folder.clone()] {
        let output = copy(&target)?;
        ensure!(output.status.success(), "{output:?}");
        ensure!(std::fs::read(folder.join("plugin"))? == b"\x7fELF \xff");
        let mode = std::fs::metadata(folder.join("plugin"))?.permissions().mode();
        ensure!(mode & 0o777 == 0o755, "mode {mode:o}");
    }
    ensure!(std::io::read_to_string(old)? == "old", "a file that somebody runs was written to");
    ensure!(std::fs::read_dir(&folder)?.count() == 1);
    Ok(())
}

fn install_conf_refuses(two: &mut Two, _: &Notes) -> Result<()> {
    let node = node(two)?;
    let (source, target) = (node.dir().join("bad.json"), node.dir().join("10-flannel.conflist"));
    std::fs::write(&source, "{\"name\": ")?;
    std::fs::write(&target, CNI)?;
    for (arguments, code, parts) in [
        (vec![source.clone(), target.clone()], 2, &["bad.json", "not JSON", "stays as it is"][..]),
        (vec!["/nonexistent".into(), target.clone()], 2, &["/nonexistent"]),
        (vec![source], 2, &["TARGET"]),
    ] {
        let output = node.ns().command(binary()?).arg("install-conf").args(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(code), "{} {said}", output.status);
        ensure!(parts.iter().all(|part| said.contains(part)), "{parts:?} are missing in: {said}");
        ensure!(std::fs::read_to_string(&target)? == CNI);
    }
    Ok(())
}
