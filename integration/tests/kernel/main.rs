//! What the daemon keeps in the kernel: made, repaired, taken over, and left when it goes.

#![expect(clippy::disallowed_methods, reason = "tests of the lab are side effects throughout")]

mod alloc;
mod kernel_golden;
mod kernel_host;
mod kernel_life;
mod kernel_random;
mod kernel_repair;
mod kernel_restart;
mod kernel_switch;
mod repair;
mod vxlan_checksum;

integration::group!(
    alloc,
    repair,
    vxlan_checksum,
    kernel_host,
    kernel_life,
    kernel_repair,
    kernel_restart,
    kernel_switch,
    kernel_random,
    kernel_golden
);
