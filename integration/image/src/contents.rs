//! What of ours lies where in the image. The paths are flannel's, so that a DaemonSet of flannel's runs with this image
//! and nothing else changed.

use crate::tree::Tree;

/// The daemon, and by its name every command beside it.
pub const DAEMON: &str = "/opt/bin/flanneld";
/// The CNI plugins: what flannel has in an image of its own.
pub const PLUGIN: &str = "/flannel";
/// The bill of materials.
pub const SBOM: &str = "/usr/share/doc/loden/loden.spdx.json";
/// The folder of the daemon goes first, so that `kubectl exec … -- flanneld routes` finds it.
pub const PATH: &str = "PATH=/opt/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Names under which the daemon is started: flannel's helper for the CNI configuration, and the program that the init
/// containers of flannel's manifests copy files with.
const NAMES: [&str; 2] = ["/opt/bin/install-conf", "/bin/cp"];

/// Our files.
pub struct Ours {
    /// The program `flanneld`.
    pub daemon: Vec<u8>,
    /// The program `flannel`.
    pub plugin: Vec<u8>,
    /// The bill of materials.
    pub sbom: Vec<u8>,
}

/// Everything that we put into the image.
pub fn tree(ours: Ours) -> Tree {
    let mut tree = Tree::default();
    tree.program(DAEMON, ours.daemon);
    tree.program(PLUGIN, ours.plugin);
    for name in NAMES {
        tree.link(name, DAEMON);
    }
    tree.file(SBOM, ours.sbom);
    tree.file("/etc/passwd", "root:x:0:0:root:/root:/bin/false\n");
    tree.file("/etc/group", "root:x:0:\n");
    // Without it the C library asks DNS before /etc/hosts.
    tree.file("/etc/nsswitch.conf", "hosts: files dns\n");
    tree.folder("/tmp");
    tree
}
