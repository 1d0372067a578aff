//! Checksum offload of VXLAN devices, where it is known to be broken.
//!
//! A wrong checksum is not to be seen on the machine that makes it: the device hands the packet down unfinished, and
//! whoever finishes it last gets it wrong. So what is known is a rule, not a trial.

/// Oldest kernel on which a masqueraded packet (`--random-fully`) keeps a right checksum through a VXLAN device. Before,
/// connections from nodes to Services took 63 seconds (the initial SYN's six retries).
const RIGHT_SINCE: (u32, u32) = (5, 7);

/// VMware's network card, whose hypervisors offload encapsulated packets on some ports only and spoil the others.
const VMWARE: &str = "vmxnet3";

/// Why VXLAN devices must not leave checksums to what is below them; `None` where nothing is known against it.
///
/// `kernel` is `uname -r`, `driver` that of the external interface.
pub fn broken_offload(kernel: &str, driver: Option<&str>) -> Option<String> {
    let (major, minor) = RIGHT_SINCE;
    if release(kernel).is_some_and(|release| release < RIGHT_SINCE) {
        return Some(format!(
            "kernels before {major}.{minor} spoil checksums of masqueraded packets, and this is {kernel}"
        ));
    }
    (driver == Some(VMWARE)).then(|| format!("{VMWARE} spoils checksums inside VXLAN on many hypervisors"))
}

fn release(kernel: &str) -> Option<(u32, u32)> {
    let mut numbers = kernel.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_and_vmware_are_known_and_the_rest_is_trusted() {
        for (kernel, driver, broken) in [
            ("5.6.19-300.fc32", None, true),
            ("4.18.0-553.el8", Some("ixgbe"), true),
            ("3.10.0", None, true),
            ("5.7", None, false),
            ("6.18.44-fc-v669", Some("virtio_net"), false),
            ("5.15.0-134-generic", Some("vmxnet3"), true),
            ("10.0.1", None, false),
            ("garbage", None, false),
            ("", None, false),
        ] {
            assert_eq!(broken_offload(kernel, driver).is_some(), broken, "{kernel} {driver:?}");
        }
    }
}
