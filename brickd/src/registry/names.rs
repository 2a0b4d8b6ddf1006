//! The names of hosts, compared in one way wherever a host is looked for by its name.

use mortar_proto::registry::Peer;

/// Whether two names are one host's: as in DNS, the case of letters does not count.
pub fn same_host(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

/// Whether `peer` is called `host`, by any of its names.
pub fn is_called(peer: &Peer, host: &str) -> bool {
    names(peer).any(|name| same_host(name, host))
}

/// All names of a peer: first the one that the pool has for it.
pub fn names(peer: &Peer) -> impl Iterator<Item = &str> {
    let others = peer.other_names.iter().map(String::as_str);
    std::iter::once(peer.host.as_str()).chain(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_called_by_each_of_its_names_in_any_case() {
        let peer = Peer {
            host: "gfs01".to_owned(),
            other_names: vec!["gfs01.example.org".to_owned()],
            ..Peer::default()
        };
        assert!(is_called(&peer, "gfs01") && is_called(&peer, "GFS01"));
        assert!(is_called(&peer, "gfs01.Example.ORG"));
        assert!(!is_called(&peer, "gfs02") && !is_called(&peer, "gfs01.example"));
    }
}
