//! The test API server itself: it is real, it answers each kind of client as it should, and it leaves nothing behind.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use integration::apiserver::{Access, ApiServer, Etcd, NAMESPACE, NodeSpec, Options, refused_with};
use k8s_openapi::api::authorization::v1::{SelfSubjectRulesReview, SelfSubjectRulesReviewSpec};
use k8s_openapi::api::core::v1::{Node, Pod, Secret};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

const NODE_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 77, 1));
const DAEMON: &str = "system:serviceaccount:loden-system:loden";

/// One server for the tests that do not hurt it; it goes with the process.
fn shared() -> Result<&'static ApiServer> {
    static SERVER: OnceLock<Result<ApiServer>> = OnceLock::new();
    match SERVER.get_or_init(|| ApiServer::start(Options::default())) {
        Ok(server) => Ok(server),
        Err(error) => bail!("the shared API server did not start: {error:#}"),
    }
}

#[test]
fn it_is_the_pinned_kubernetes_with_kubectl_of_the_same_version() -> Result<()> {
    let server = shared()?;
    let version = server.kubectl(&["version"])?;
    assert!(version.contains("Server Version: v1.36.1"), "{version}");
    assert!(version.contains("Client Version: v1.36.1"), "{version}");
    println!("ready after {:?}, {} MB resident", server.start_took(), server.rss_bytes()? / 1_000_000);
    Ok(())
}

#[test]
fn nodes_can_be_made_changed_and_deleted() -> Result<()> {
    let server = shared()?;
    server.create_node(&NodeSpec::new("made", "10.244.9.0/24", NODE_IP).annotation("example.org/a", "1"))?;
    server.annotate_node("made", "example.org/a", None)?;
    server.annotate_node("made", "example.org/b", Some("2"))?;
    server.patch_node_status(
        "made",
        json!({ "status": { "addresses": [{ "type": "InternalIP", "address": "192.168.77.9" }] } }),
    )?;
    let node = server.node("made")?;
    let annotations = node.metadata.annotations.context("annotations")?;
    assert_eq!(annotations.get("example.org/b").map(String::as_str), Some("2"));
    assert!(!annotations.contains_key("example.org/a"));
    assert_eq!(node.spec.context("spec")?.pod_cidr.as_deref(), Some("10.244.9.0/24"));
    let address = node
        .status
        .context("status")?
        .addresses
        .and_then(|list| list.into_iter().next())
        .context("address")?;
    assert_eq!(address.address, "192.168.77.9");
    server.delete_node("made")?;
    assert_eq!(server.node("made").err().as_ref().and_then(refused_with), Some(404));
    Ok(())
}

/// The whole list, not a sample: what every authenticated account may do is subtracted, and nothing else may be left.
#[test]
fn the_daemons_rights_are_exactly_those_of_its_role() -> Result<()> {
    let server = shared()?;
    let review = server.call_as(Access::Daemon, |client| async move {
        let request = SelfSubjectRulesReview {
            spec: SelfSubjectRulesReviewSpec { namespace: Some(NAMESPACE.to_owned()) },
            ..SelfSubjectRulesReview::default()
        };
        Api::<SelfSubjectRulesReview>::all(client).create(&PostParams::default(), &request).await
    })?;
    let rules = serde_json::to_value(review.status.context("a review without a status")?.resource_rules)?;
    let about_itself = |rule: &&serde_json::Value| {
        let group = rule["apiGroups"][0].as_str().unwrap_or_default();
        !["authentication.k8s.io", "authorization.k8s.io"].contains(&group)
    };
    let own: Vec<_> = rules.as_array().context("no rules")?.iter().filter(about_itself).collect();
    assert_eq!(
        json!(own),
        json!([
            { "apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"] },
            { "apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"] },
            { "apiGroups": [""], "resources": ["events"], "verbs": ["create"] },
        ])
    );
    Ok(())
}

#[test]
fn the_daemon_can_do_its_work_and_no_more() -> Result<()> {
    let server = shared()?;
    server.create_node(&NodeSpec::new("own", "10.244.1.0/24", NODE_IP))?;
    server.create_node(&NodeSpec::new("other", "10.244.2.0/24", NODE_IP))?;
    server.call_on("own", |client| async move {
        let nodes: Api<Node> = Api::all(client);
        nodes.list(&ListParams::default()).await?;
        nodes.get("own").await?;
        let annotations = json!({ "flannel.alpha.coreos.com/public-ip": "1" });
        let patch = Patch::Strategic(json!({ "metadata": { "annotations": annotations } }));
        nodes.patch_status("own", &PatchParams::default(), &patch).await
    })?;
    let annotated = server.node("own")?.metadata.annotations.context("annotations")?;
    assert_eq!(
        annotated.get("flannel.alpha.coreos.com/public-ip").map(String::as_str),
        Some("1"),
        "annotations go through nodes/status"
    );

    let refused: [(&str, Result<()>); 5] = [
        (
            "patch a Node",
            server.call_as(Access::Daemon, |client| async move {
                let patch = Patch::Strategic(json!({ "metadata": { "labels": { "a": "b" } } }));
                Api::<Node>::all(client).patch("own", &PatchParams::default(), &patch).await.map(drop)
            }),
        ),
        (
            "create a Node",
            server.call_as(Access::Daemon, |client| async move {
                Api::all(client).create(&PostParams::default(), &Node::default()).await.map(drop)
            }),
        ),
        (
            "list Pods",
            server.call_as(Access::Daemon, |client| async move {
                Api::<Pod>::all(client).list(&ListParams::default()).await.map(drop)
            }),
        ),
        (
            "list Secrets",
            server.call_as(Access::Daemon, |client| async move {
                Api::<Secret>::all(client).list(&ListParams::default()).await.map(drop)
            }),
        ),
        (
            "delete a Node",
            server.call_as(Access::Daemon, |client| async move {
                Api::<Node>::all(client).delete("other", &kube::api::DeleteParams::default()).await.map(drop)
            }),
        ),
    ];
    for (what, answer) in refused {
        let Err(error) = answer else { bail!("the daemon was allowed to {what}") };
        assert_eq!(refused_with(&error), Some(403), "{what}: {error:#}");
    }
    Ok(())
}

#[test]
fn each_kind_of_client_meets_its_own_answer() -> Result<()> {
    let server = shared()?;
    let error = |access: Access| -> Result<anyhow::Error> {
        server
            .call_as(
                access,
                |client| async move { Api::<Node>::all(client).list(&ListParams::default()).await },
            )
            .err()
            .with_context(|| format!("{access:?} was let in"))
    };
    assert_eq!(refused_with(&error(Access::BadToken)?), Some(401));
    assert_eq!(refused_with(&error(Access::NoRbac)?), Some(403));
    let unknown_ca = format!("{:#}", error(Access::UnknownCa)?);
    assert!(unknown_ca.contains("UnknownIssuer"), "{unknown_ca}");
    let refused = format!("{:#}", error(Access::NobodyListens)?);
    assert!(refused.contains("Connection refused"), "{refused}");
    Ok(())
}

#[test]
fn the_audit_log_tells_what_a_client_asked() -> Result<()> {
    let server = ApiServer::start(Options::default())?;
    server.call_as(Access::Daemon, |client| async move {
        Api::<Node>::all(client).list(&ListParams::default()).await
    })?;
    let mut requests = Vec::new();
    until("the request is in the log", || {
        requests = server.requests_of(DAEMON)?;
        Ok(!requests.is_empty())
    })?;
    let seen: Vec<_> = requests.iter().map(|r| (r.verb.as_str(), r.uri.as_str(), r.code)).collect();
    assert_eq!(seen, [("list", "/api/v1/nodes?", 200)]);
    Ok(())
}

#[test]
fn it_hangs_dies_and_comes_back_with_its_data() -> Result<()> {
    let server = ApiServer::start(Options::default())?;
    server.create_node(&NodeSpec::new("kept", "10.244.1.0/24", NODE_IP))?;
    let ask = || {
        server.call(|client| async move {
            tokio::time::timeout(Duration::from_secs(2), Api::<Node>::all(client).get("kept")).await
        })
    };

    server.pause()?;
    assert!(ask().is_err(), "a paused server answered");
    server.resume()?;
    until("the resumed server answers", || Ok(matches!(ask(), Ok(Ok(_)))))?;

    server.kill();
    let refused =
        server.call_as(Access::Admin, |client| async move { Api::<Node>::all(client).get("kept").await });
    let refused = format!("{:#}", refused.err().context("a dead server answered")?);
    assert!(refused.contains("Connection refused"), "{refused}");

    let started = Instant::now();
    server.restart()?;
    println!("restarted in {:?}", started.elapsed());
    assert_eq!(server.node("kept")?.metadata.name.as_deref(), Some("kept"));
    Ok(())
}

/// A streaming list is a watch that begins with what exists. It needs a newer etcd than Debian's.
#[test]
fn streaming_lists_depend_on_etcd() -> Result<()> {
    let stream = |server: &ApiServer| {
        server.call(|client| async move {
            let query = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true\
                         &timeoutSeconds=1";
            let request = http::Request::get(format!("/api/v1/nodes?{query}")).body(Vec::new())?;
            Ok::<_, anyhow::Error>(client.request_text(request).await?)
        })
    };
    let streamed = stream(shared()?)?;
    assert!(streamed.contains("k8s.io/initial-events-end"), "{streamed}");

    let old = ApiServer::start(Options { etcd: Etcd::Debian34, ..Options::default() })?;
    let answer = stream(&old)?;
    println!("on etcd 3.4, ready after {:?}: {answer}", old.start_took());
    // The refusal is no HTTP status: the watch begins, and its only event is an error.
    let event: serde_json::Value = serde_json::from_str(answer.trim_end()).with_context(|| answer.clone())?;
    assert_eq!(event["type"], json!("ERROR"), "{answer}");
    assert_eq!(event["object"]["code"], json!(500), "{answer}");
    let message = event["object"]["message"].as_str().context("no message")?;
    assert!(message.contains("RequestWatchProgress is disabled"), "{answer}");
    old.create_node(&NodeSpec::new("paged", "10.244.1.0/24", NODE_IP))?;
    assert_eq!(old.nodes()?.len(), 1, "paged lists work there");
    Ok(())
}

#[test]
fn it_lives_in_another_network_namespace() -> Result<()> {
    let address: IpAddr = Ipv4Addr::new(192, 168, 77, 254).into();
    let netns = std::thread::spawn(move || -> Result<File> {
        unshare(CloneFlags::CLONE_NEWNET).context("this test makes a network namespace, which needs root")?;
        for args in ["link set lo up", "address add 192.168.77.254/32 dev lo"] {
            ensure!(Command::new("ip").args(args.split(' ')).status()?.success(), "ip {args} failed");
        }
        Ok(File::open("/proc/thread-self/ns/net")?)
    });
    let netns = netns.join().map_err(|_| anyhow::anyhow!("the namespace's thread panicked"))??;
    let netns = Some(Arc::new(netns.into()));
    let server = ApiServer::start(Options { netns, address, port: 6443, ..Options::default() })?;
    assert_eq!(server.url(), "https://192.168.77.254:6443");
    server.create_node(&NodeSpec::new("inside", "10.244.1.0/24", NODE_IP))?;
    let listed = server.kubectl(&["get", "nodes", "-o", "name"])?;
    assert_eq!(listed, "node/inside\n");
    Ok(())
}

#[test]
fn dropping_it_leaves_nothing() -> Result<()> {
    let server = ApiServer::start(Options::default())?;
    let dir = server.dir().to_owned();
    let address = server.address();
    drop(server);
    assert!(!dir.exists());
    assert!(std::net::TcpStream::connect(address).is_err(), "somebody still listens at {address}");
    Ok(())
}

#[test]
fn a_killed_owner_leaves_nothing() -> Result<()> {
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let (mut owner, dir) = owner()?;
        let theirs = processes_using(&dir)?;
        ensure!(theirs.len() >= 2, "etcd and kube-apiserver should be running, saw {theirs:?}");
        kill(Pid::from_raw(i32::try_from(owner.id())?), signal)?;
        owner.wait()?;
        until(&format!("nothing is left after {signal}"), || {
            Ok(!dir.exists() && processes_using(&dir)?.is_empty())
        })?;
    }
    Ok(())
}

/// The program for trying things by hand, and the folder of its server.
fn owner() -> Result<(Child, PathBuf)> {
    let mut owner = Command::new(env!("CARGO_BIN_EXE_apiserver")).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(owner.stdout.take().context("no pipe")?).lines();
    let mut printed = String::new();
    while !printed.contains("Ctrl-C") {
        printed += &lines.next().context("it ended before it was ready")??;
        printed.push('\n');
    }
    let kubeconfig = printed.lines().find_map(|line| line.strip_prefix("kubeconfig of the administrator: "));
    let kubeconfig = Path::new(kubeconfig.with_context(|| format!("no kubeconfig in:\n{printed}"))?);
    let dir = kubeconfig.parent().context("no folder")?.to_owned();
    Ok((owner, dir))
}

/// The programs with `dir` on their command line, except the helper that removes it.
fn processes_using(dir: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path().join("cmdline");
        // Most are no process, or one that ended meanwhile.
        let Ok(line) = std::fs::read_to_string(path) else { continue };
        let program = line.split('\0').next().unwrap_or_default();
        if line.contains(&*dir.to_string_lossy()) && !program.ends_with("/sh") {
            found.push(program.to_owned());
        }
    }
    Ok(found)
}

fn until(what: &str, mut look: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !look()? {
        ensure!(Instant::now() < deadline, "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
