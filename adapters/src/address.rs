//! An address of the network that moves with the primary: put on an interface, told to the neighbours, taken off. By the
//! kernel's own interfaces (rtnetlink, a raw packet), so that no program has to be found and no name to be asked.

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// No wait for others that might have the address: the one that had it may still answer for a moment.
const IFA_F_NODAD: u8 = 0x02;
/// The kernel answers at once; what takes longer is a defect.
const ANSWER_SECONDS: i64 = 1;

/// Which address, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Floating {
    /// The address.
    pub address: IpAddr,
    /// Length of its prefix.
    pub prefix: u8,
    /// The interface.
    pub interface: String,
}

impl fmt::Display for Floating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} on {}", self.address, self.prefix, self.interface)
    }
}

/// Why something could not be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed(String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Failed {}

impl Floating {
    /// `10.0.0.100/24`, and an interface.
    pub fn parse(address: &str, interface: &str) -> Result<Floating, Failed> {
        let bad = || Failed(format!("`{address}` is not an address with its prefix, as 10.0.0.100/24 is"));
        let (ip, prefix) = address.split_once('/').ok_or_else(bad)?;
        let ip: IpAddr = ip.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        if prefix == 0 || prefix > most || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
            return Err(bad());
        }
        if interface.is_empty() || interface.len() > 15 || interface.contains(['/', ' ', '\0']) {
            return Err(Failed(format!("`{interface}` is not the name of a network interface")));
        }
        Ok(Floating { address: ip, prefix, interface: interface.to_owned() })
    }

    /// Puts the address on the interface; well also where it is there already.
    pub fn add(&self) -> Result<(), Failed> {
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        match self.change(RTM_NEWADDR, flags)? {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(error) => Err(self.refused("be put on the interface", error)),
        }
    }

    /// Takes the address off; well also where it is not there.
    pub fn remove(&self) -> Result<(), Failed> {
        match self.change(RTM_DELADDR, 0)? {
            Ok(()) | Err(Errno::EADDRNOTAVAIL | Errno::ENODEV) => Ok(()),
            Err(error) => Err(self.refused("be taken off the interface", error)),
        }
    }

    /// Tells the neighbours that the address is here now: gratuitous ARP, or an unsolicited neighbour advertisement.
    pub fn announce(&self) -> Result<(), Failed> {
        let link = self.link()?;
        let Some(mac) = link.addr() else { return Ok(()) };
        let packet = match self.address {
            IpAddr::V4(address) => gratuitous_arp(mac, address),
            IpAddr::V6(address) => neighbour_advertisement(mac, address),
        };
        let failed = |error: Errno| self.refused("be announced", error);
        let raw = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
        sendto(raw.as_raw_fd(), &packet, &link, MsgFlags::empty()).map_err(failed)?;
        Ok(())
    }

    fn refused(&self, what: &str, error: Errno) -> Failed {
        let why = match error {
            Errno::EPERM | Errno::EACCES => {
                "the keeper lacks the capabilities CAP_NET_ADMIN and CAP_NET_RAW".to_owned()
            }
            other => other.desc().to_owned(),
        };
        Failed(format!("{self} cannot {what}: {why}"))
    }

    fn link(&self) -> Result<LinkAddr, Failed> {
        let all = getifaddrs().map_err(|error| self.refused("be looked up", error))?;
        let found = all.filter(|found| found.interface_name == self.interface);
        let link = found.filter_map(|found| found.address?.as_link_addr().copied()).next();
        link.ok_or_else(|| Failed(format!("there is no network interface `{}`", self.interface)))
    }

    /// One request to the kernel, and its answer.
    fn change(&self, kind: u16, flags: u16) -> Result<Result<(), Errno>, Failed> {
        let index = if_nametoindex(self.interface.as_str())
            .map_err(|_| Failed(format!("there is no network interface `{}`", self.interface)))?;
        let failed = |error: Errno| self.refused("be changed", error);
        let way = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)
            .map_err(failed)?;
        setsockopt(&way, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS, 0)).map_err(failed)?;
        let request = self.request(kind, flags | NLM_F_REQUEST | NLM_F_ACK, index);
        sendto(way.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty()).map_err(failed)?;
        let mut answer = [0u8; 1024];
        let length = recv(way.as_raw_fd(), &mut answer, MsgFlags::empty()).map_err(failed)?;
        match verdict(&answer[..length]) {
            Some(0) => Ok(Ok(())),
            Some(error) => Ok(Err(Errno::from_raw(-error))),
            None => Err(Failed(format!("the kernel's answer about {self} was not understood"))),
        }
    }

    fn request(&self, kind: u16, flags: u16, index: u32) -> Vec<u8> {
        let (family, bytes) = match self.address {
            IpAddr::V4(address) => (AddressFamily::Inet as u8, address.octets().to_vec()),
            IpAddr::V6(address) => (AddressFamily::Inet6 as u8, address.octets().to_vec()),
        };
        let mut body = vec![family, self.prefix, if self.address.is_ipv6() { IFA_F_NODAD } else { 0 }, 0];
        body.extend(index.to_ne_bytes());
        for attribute in [IFA_LOCAL, IFA_ADDRESS] {
            // Lengths of addresses are multiples of four, so no padding is due.
            body.extend(u16::try_from(bytes.len() + 4).unwrap_or(u16::MAX).to_ne_bytes());
            body.extend(attribute.to_ne_bytes());
            body.extend(&bytes);
        }
        let mut message = u32::try_from(body.len() + 16).unwrap_or(u32::MAX).to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(1u32.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(body);
        message
    }
}

/// The number in an answer of the kind "error", of which 0 means well.
fn verdict(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let number = i32::from_ne_bytes(answer.get(16..20)?.try_into().ok()?);
    (kind == NLMSG_ERROR).then_some(number)
}

fn gratuitous_arp(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut packet = [0xFF; 6].to_vec();
    packet.extend(mac);
    // ARP, Ethernet and IPv4, a request: neighbours take requests up that they would not take as answers.
    packet.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    packet.extend(mac);
    packet.extend(address.octets());
    packet.extend([0; 6]);
    packet.extend(address.octets());
    packet.resize(60, 0);
    packet
}

fn neighbour_advertisement(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xFF02, 0, 0, 0, 0, 0, 0, 1);
    // Type 136, override; then the target, and its link-layer address as an option.
    let mut advertisement = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    advertisement.extend(address.octets());
    advertisement.extend([2, 1]);
    advertisement.extend(mac);
    let mut summed = address.octets().to_vec();
    summed.extend(all_nodes.octets());
    summed.extend([0, 0, 0, advertisement.len() as u8, 0, 0, 0, 58]);
    summed.extend(&advertisement);
    let sum = summed.chunks(2).fold(0u32, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let folded = (sum & 0xFFFF) + (sum >> 16);
    let check = !(((folded & 0xFFFF) + (folded >> 16)) as u16);
    advertisement[2..4].copy_from_slice(&check.to_be_bytes());
    let mut packet = vec![0x33, 0x33, 0, 0, 0, 1];
    packet.extend(mac);
    packet.extend([0x86, 0xDD, 0x60, 0, 0, 0, 0, advertisement.len() as u8, 58, 255]);
    packet.extend(address.octets());
    packet.extend(all_nodes.octets());
    packet.extend(advertisement);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_with_their_prefix() {
        let parsed = Floating::parse("10.0.0.100/24", "eth0").expect("an address");
        assert_eq!(parsed.to_string(), "10.0.0.100/24 on eth0");
        assert!(Floating::parse("fd00::5/64", "eth0").is_ok());
        for bad in ["10.0.0.1", "10.0.0.1/33", "10.0.0.1/0", "x/24", "127.0.0.1/8", "0.0.0.0/8", "224.0.0.1/4", ""] {
            assert!(Floating::parse(bad, "eth0").is_err(), "{bad}");
        }
        for bad in ["", "../eth0", "an-interface-name-too-long"] {
            assert!(Floating::parse("10.0.0.1/24", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn packets_are_as_the_protocols_have_them() {
        let mac = [2, 0, 0, 0, 0, 1];
        let arp = gratuitous_arp(mac, Ipv4Addr::new(10, 0, 0, 9));
        assert_eq!(&arp[..14], [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 2, 0, 0, 0, 0, 1, 8, 6]);
        assert_eq!((&arp[28..32], &arp[38..42]), (&[10, 0, 0, 9][..], &[10, 0, 0, 9][..]), "sender and target alike");
        let advertisement = neighbour_advertisement(mac, "fd00::9".parse().expect("an address"));
        assert_eq!(advertisement.len(), 14 + 40 + 32);
        // The sum over pseudo header and message, its own check included, is all ones.
        let mut summed = advertisement[22..54].to_vec();
        summed.extend([0, 0, 0, 32, 0, 0, 0, 58]);
        summed.extend(&advertisement[54..]);
        let sum = summed.chunks(2).fold(0u32, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        assert_eq!((sum & 0xFFFF) + (sum >> 16), 0xFFFF);
    }

    #[test]
    fn an_interface_that_is_not_there_is_named() {
        let nowhere = Floating::parse("10.0.0.1/24", "nowhere0").expect("an address");
        for failed in [nowhere.add(), nowhere.announce()] {
            assert!(failed.expect_err("refused").to_string().contains("nowhere0"));
        }
    }
}
