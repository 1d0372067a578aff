//! `flannel`: tells another plugin, usually `bridge`, what this node's part of the network is.

use std::io::Write as _;

use serde_json::{Map, Value, json};

use super::daemon::Daemon;
use super::worker::Worker;
use super::{Answer, Call, Plugin};
use crate::adapter::cni::{self as effects, Kept, Links};
use crate::cni::bridge::{BridgeConf, ensure_address};
use crate::cni::flannel::{Delegate, FlannelConf, SubnetEnv};
use crate::cni::{Attachment, Cidr, CniError, Code, Command, NetConf, Request};

/// See the module.
pub(super) struct Flannel;

/// The device of a container whose kept configuration, written by flannel's own plugin, does not name one.
const DEFAULT_IFNAME: &str = "eth0";

impl Plugin for Flannel {
    fn add(&self, call: &Call) -> Result<Answer, CniError> {
        let conf = FlannelConf::parse(&call.conf)?;
        let (env, daemon) = subnet_env(&conf)?;
        let delegate = conf.delegate(&env)?;
        let worker = Worker::find(&delegate.kind, conf.builtin, &call.request)?;
        undo_earlier_boot(&conf, call)?;
        let kept = Kept::new(&conf.data_dir);
        let attachment = attachment(&call.request);
        // An ADD of what is attached already must not undo the first one.
        let attached = kept.load(&attachment)?.is_some();
        kept.save(&attachment, &delegate)?;
        worker.ask(Command::Add, call, delegate.text.as_bytes()).map_err(|error| {
            // Best effort: the failure of ADD is the one to tell of, and what stays is kept for the runtime's DEL.
            if !attached && worker.ask(Command::Del, call, delegate.text.as_bytes()).is_ok() {
                let _ = kept.forget(&attachment);
            }
            free_bridge(call, &delegate, &env, &daemon).err().filter(|_| !attached).unwrap_or(error)
        })
    }

    fn del(&self, call: &Call) -> Result<(), CniError> {
        let conf = FlannelConf::parse(&call.conf)?;
        undo(&conf, call, &attachment(&call.request))
    }

    fn check(&self, call: &Call) -> Result<(), CniError> {
        let conf = FlannelConf::parse(&call.conf)?;
        let attachment = attachment(&call.request);
        let Some(delegate) = Kept::new(&conf.data_dir).load(&attachment)? else {
            return Err(CniError::new(
                Code::CheckFailed,
                format!("nothing is known of {} of container {}", attachment.ifname, attachment.container_id),
                format!("{} has no file of it; recreate the pod", conf.data_dir.display()),
            ));
        };
        // The node must still be able to carry the pod's packets.
        subnet_env(&conf)?;
        let input = with_field(&delegate.text, "prevResult", call.conf.fields.get("prevResult"))?;
        Worker::find(&delegate.kind, conf.builtin, &call.request)?.ask(Command::Check, call, &input).map(drop)
    }

    fn gc(&self, call: &Call) -> Result<(), CniError> {
        let conf = FlannelConf::parse(&call.conf)?;
        let valid = call.conf.valid_attachments()?;
        let mut failed = None;
        for stale in Kept::new(&conf.data_dir).stale(&valid, DEFAULT_IFNAME)? {
            if let Err(error) = undo_stale(&conf, call, &stale) {
                failed = Some(error);
            }
        }
        // What the delegate holds without our knowing, such as an address whose ADD was killed half way.
        let collected = subnet_env(&conf).and_then(|(env, _)| conf.delegate(&env)).and_then(|delegate| {
            let input = with_field(&delegate.text, "cni.dev/valid-attachments", Some(&json!(valid)))?;
            Worker::find(&delegate.kind, conf.builtin, &call.request)?
                .ask(Command::Gc, call, &input)
                .map(drop)
        });
        failed.map_or(Ok(()), Err).and(collected)
    }

    fn status(&self, call: &Call) -> Result<(), CniError> {
        let unavailable = |error: CniError| CniError { code: Code::NotAvailable, ..error };
        let conf = FlannelConf::parse(&call.conf)?;
        let (env, daemon) = subnet_env(&conf).map_err(unavailable)?;
        let delegate = conf.delegate(&env).map_err(unavailable)?;
        free_bridge(call, &delegate, &env, &daemon).map_err(unavailable)?;
        daemon.serves()?;
        let worker = Worker::find(&delegate.kind, conf.builtin, &call.request).map_err(unavailable)?;
        worker.ask(Command::Status, call, delegate.text.as_bytes()).map(drop)
    }
}

/// Has the delegate undo an attachment, and forgets it only when it has.
fn undo(conf: &FlannelConf, call: &Call, attachment: &Attachment) -> Result<(), CniError> {
    let kept = Kept::new(&conf.data_dir);
    if let Some(delegate) = kept.load(attachment)? {
        Worker::find(&delegate.kind, conf.builtin, &call.request)?.ask(
            Command::Del,
            call,
            delegate.text.as_bytes(),
        )?;
    }
    kept.forget(attachment)
}

/// The same for a container that is gone, and so is its namespace.
fn undo_stale(conf: &FlannelConf, call: &Call, stale: &Attachment) -> Result<(), CniError> {
    let request = Request {
        command: Command::Del,
        container_id: stale.container_id.clone(),
        ifname: stale.ifname.clone(),
        netns: None,
        ..call.request.clone()
    };
    undo(conf, &Call { request, ..call.clone() }, stale)
}

/// Undoes what an earlier boot left, such as reserved addresses. What cannot be undone waits for GC.
fn undo_earlier_boot(conf: &FlannelConf, call: &Call) -> Result<(), CniError> {
    let Some(earlier) = Kept::new(&conf.data_dir).earlier_boot()? else { return Ok(()) };
    for stale in &earlier.attachments {
        if let Err(error) = undo_stale(conf, call, stale) {
            let container = &stale.container_id;
            let _ = writeln!(
                std::io::stderr(),
                "flannel: what container {container} of an earlier boot left stays: {error}"
            );
        }
    }
    earlier.over()
}

fn attachment(request: &Request) -> Attachment {
    Attachment { container_id: request.container_id.clone(), ifname: request.ifname.clone() }
}

/// What `subnet.env` says, and what the daemon says. Where the file lacks something, the daemon says why.
fn subnet_env(conf: &FlannelConf) -> Result<(SubnetEnv, Daemon), CniError> {
    let path = &conf.subnet_file;
    let shown = path.display();
    let daemon = Daemon::ask(path);
    let text = effects::read_if_there(path)?.map(|text| String::from_utf8_lossy(&text).into_owned());
    let env = match &text {
        Some(text) => SubnetEnv::parse(text, &shown.to_string()),
        None => Err(CniError::new(
            Code::TryLater,
            format!("failed to load flannel 'subnet.env' file: {shown} does not exist"),
            "the daemon writes it when it is ready. Check the flannel pod log for this node",
        )),
    };
    let env = env.map_err(|error| match error.code {
        Code::TryLater => daemon.explain(error),
        _ => error,
    })?;
    daemon.confirm(path, text.as_deref().unwrap_or_default())?;
    Ok((env, daemon))
}

/// Whether the bridge is free for the subnets of `subnet.env`. After a node got another podCIDR it keeps the old address.
///
/// # Errors
/// Code 11 with the remedy, and with what the daemon says.
fn free_bridge(call: &Call, delegate: &Delegate, env: &SubnetEnv, daemon: &Daemon) -> Result<(), CniError> {
    if delegate.kind != "bridge" {
        return Ok(());
    }
    let conf = BridgeConf::parse(&NetConf::parse(delegate.text.as_bytes())?, &call.request)?;
    let mut host = Links::open()?;
    let Some(bridge) = host.find(&conf.bridge)? else { return Ok(()) };
    let has = host.addresses(&bridge)?;
    for subnet in [env.subnet, env.subnet6].into_iter().flatten() {
        let Some(addr) = subnet.nth(1) else { continue };
        ensure_address(&conf.bridge, &has, Cidr { addr, len: subnet.len() }, conf.force_address)
            .map_err(|error| CniError { code: Code::TryLater, ..daemon.explain(error) })?;
    }
    Ok(())
}

/// A delegate's configuration with one more field.
fn with_field(text: &str, key: &str, value: Option<&Value>) -> Result<Vec<u8>, CniError> {
    let mut fields: Map<String, Value> = serde_json::from_str(text).map_err(|error| {
        CniError::new(Code::Internal, "the delegate's configuration cannot be read", error.to_string())
    })?;
    if let Some(value) = value {
        fields.insert(key.to_owned(), value.clone());
    }
    Ok(Value::Object(fields).to_string().into_bytes())
}
