//! Free ports for a sandbox. They are taken from below the range that the kernel gives to outgoing connections, so
//! that none of those can take one between the choice and its use.

use model::Trouble;
use std::net::TcpListener;

const RANGE_START: u16 = 20_000;
const RANGE_END: u16 = 32_000;
const TRIES_MAX: u32 = 4_000;

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

/// So many free ports, from `base` on where given.
pub fn choose(count: usize, base: Option<u16>) -> Result<Vec<u16>, Trouble> {
    if let Some(base) = base {
        let ports: Vec<u16> = (base..=u16::MAX).take(count).collect();
        return match ports.iter().find(|port| !is_free(**port)) {
            Some(port) => Err(Trouble::port_taken(
                format!("port {port} is in use"),
                "choose another --base-port, or leave it out",
            )),
            None if ports.len() < count => Err(Trouble::usage(
                format!("--base-port {base} leaves no room for {count} ports"),
                "choose a lower one",
            )),
            None => Ok(ports),
        };
    }
    // Two sandboxes started at the same moment begin at different places.
    let mut candidate = u64::from_le_bytes(uuid::Uuid::new_v4().as_bytes()[..8].try_into().unwrap_or_default());
    let mut ports = Vec::with_capacity(count);
    for _ in 0..TRIES_MAX {
        candidate = candidate.wrapping_add(1);
        let port = RANGE_START + u16::try_from(candidate % u64::from(RANGE_END - RANGE_START)).unwrap_or(0);
        if !ports.contains(&port) && is_free(port) {
            ports.push(port);
        }
        if ports.len() == count {
            return Ok(ports);
        }
    }
    Err(Trouble::port_taken("no free ports were found", "give --base-port"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_differ() {
        let mut ports = choose(12, None).expect("free ports");
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 12);
        let holder = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let taken = holder.local_addr().expect("its address").port();
        assert_eq!(choose(1, Some(taken)).expect_err("in use").code.to_string(), "ST1201");
    }
}
