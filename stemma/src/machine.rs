//! What tells this machine from others.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// A name of this machine in its present life, together with the network that this process is on: containers of one machine
/// that have networks of their own are as good as apart. `None` where the kernel does not tell.
pub fn name() -> Option<String> {
    let life = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let network = fs::metadata("/proc/self/ns/net").ok()?.ino();
    Some(format!("{}/{network}", life.trim()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_machine_has_one_name() {
        let name = super::name().expect("Linux tells");
        assert_eq!(Some(&name), super::name().as_ref());
        assert!(name.len() > 36, "{name}");
    }
}
