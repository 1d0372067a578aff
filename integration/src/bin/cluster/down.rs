//! Taking a cluster away, whatever state it is in: up, half up, its supervisor killed, or not there at all.

use std::io::Write as _;

use anyhow::{Context, Result, ensure};

use crate::cgroup;
use crate::spec::Layout;

/// Kills everything that is in the cluster's cgroups, and removes these and the folder. Namespaces and mounts go with the
/// processes that had them.
///
/// # Errors
/// When a process, a cgroup or a file stays.
pub(crate) fn down(layout: &Layout) -> Result<()> {
    let killed = cgroup::destroy()?;
    let there = layout.dir.exists();
    if there {
        let entries = std::fs::read_dir(&layout.dir)?.flatten();
        let names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        ensure!(
            names.is_empty() || names.iter().any(|name| name == "spec.json" || name == "log"),
            "{} is not a folder that `up` made; nothing in it was removed",
            layout.dir.display()
        );
        std::fs::remove_dir_all(&layout.dir).with_context(|| format!("remove {}", layout.dir.display()))?;
    }
    // Nobody holds it: an `up` under way has just lost its cluster, and ends.
    let _ = std::fs::remove_file(layout.lock());
    let said = match (killed, there) {
        (0, false) => "no cluster was up".to_owned(),
        _ => format!("the cluster is gone: {killed} processes ended, {} removed", layout.dir.display()),
    };
    writeln!(std::io::stdout(), "{said}")?;
    Ok(())
}
