//! Brick specifications as `volume create` takes them, and the rules a set of them must obey.

use std::fmt;
use std::str::FromStr;

use mortar_proto::registry::{Peer, View};

use super::Refusal;

/// Longest path of a brick, in bytes: the files in it must have room below PATH_MAX.
pub const BRICK_PATH_BYTES_MAX: usize = 1024;
/// Most copies of a file.
pub const REPLICA_MAX: u32 = 3;

/// One brick as it is written: `HOST:/ABSOLUTE/PATH`, its path without superfluous slashes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BrickSpec {
    /// The host's name or address.
    pub host: String,
    /// The absolute path, plain: no `.`, `..`, double or trailing slash.
    pub path: String,
}

impl fmt::Display for BrickSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.path)
    }
}

impl FromStr for BrickSpec {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let wrong = || {
            let shown = text.escape_debug();
            Refusal(format!(
                "Wrong brick type: {shown}, use <HOSTNAME>:<export-dir-abs-path>"
            ))
        };
        let (host, path) = text.split_once(":/").ok_or_else(wrong)?;
        let of_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        if bare.is_empty() || bare.starts_with('-') || !bare.chars().all(of_host) {
            return Err(wrong());
        }
        Ok(BrickSpec {
            host: bare.to_owned(),
            path: plain_path(path, text)?,
        })
    }
}

/// Checks what can be checked without a pool: counts, transport and doubles, and parses each brick.
///
/// # Errors
/// The first thing wrong, in the words the CLI prints.
pub fn check_request(
    replica: u32,
    transport: &str,
    bricks: &[String],
) -> Result<Vec<BrickSpec>, Refusal> {
    if !matches!(transport, "" | "tcp") {
        return Err(Refusal(format!(
            "incorrect transport protocol specified: '{transport}'; Mortar speaks tcp only"
        )));
    }
    if !(1..=REPLICA_MAX).contains(&replica) {
        return Err(Refusal(format!(
            "replica count must be between 1 and {REPLICA_MAX}, not {replica}"
        )));
    }
    if bricks.is_empty() {
        return Err(Refusal::new(
            "no bricks given: name each as HOST:/ABSOLUTE/PATH",
        ));
    }
    let specs = bricks
        .iter()
        .map(|text| text.parse())
        .collect::<Result<Vec<BrickSpec>, _>>()?;
    for (at, spec) in specs.iter().enumerate() {
        if specs[..at].contains(spec) {
            return Err(Refusal(format!("Found duplicate exports {spec}")));
        }
    }
    if specs.len() % replica as usize != 0 {
        return Err(Refusal(format!(
            "number of bricks is not a multiple of replica count: {} bricks, replica {replica}",
            specs.len()
        )));
    }
    if specs.len() != replica as usize {
        return Err(Refusal(format!(
            "a volume has one replica set so far: replica {replica} takes exactly {replica} brick(s)"
        )));
    }
    Ok(specs)
}

/// The sentence that refuses two bricks of one replica set on one host.
pub(super) const SAME_HOST: &str = "Multiple bricks of a replicate volume are present on the same \
    server. This setup is not optimal. Bricks should be on different nodes to have best fault \
    tolerant configuration. Use 'force' at the end of the command if you want to override this \
    behavior.";

/// Refuses bricks that lie in one another or in a brick of an existing volume of the same peer.
pub(super) fn check_places(view: &View, bricks: &[(Peer, BrickSpec)]) -> Result<(), Refusal> {
    for (at, (peer, spec)) in bricks.iter().enumerate() {
        for (other_peer, other) in &bricks[..at] {
            if other_peer.id == peer.id && (spec.path == other.path) {
                return Err(Refusal(format!("Found duplicate exports {spec}")));
            }
            if other_peer.id == peer.id && nested(&spec.path, &other.path) {
                return Err(Refusal(format!(
                    "brick {spec} and brick {other} lie in one another"
                )));
            }
        }
        for (volume, brick) in view
            .volumes
            .values()
            .flat_map(|v| v.bricks.iter().map(move |b| (v, b)))
        {
            if brick.peer != peer.id {
                continue;
            }
            if brick.path == spec.path {
                return Err(Refusal(format!(
                    "{spec} is already part of a volume ({})",
                    volume.name
                )));
            }
            if nested(&spec.path, &brick.path) {
                return Err(Refusal(format!(
                    "Brick: {spec} not available. Brick may be containing or be contained by an \
                     existing brick ({} of volume {}).",
                    brick.path, volume.name
                )));
            }
        }
    }
    Ok(())
}

fn nested(one: &str, other: &str) -> bool {
    let inside = |inner: &str, outer: &str| {
        inner
            .strip_prefix(outer)
            .is_some_and(|rest| rest.starts_with('/'))
    };
    inside(one, other) || inside(other, one)
}

/// The path after the leading slash, made plain.
fn plain_path(rest: &str, whole: &str) -> Result<String, Refusal> {
    let shown = whole.escape_debug();
    let mut path = String::new();
    for part in rest.split('/').filter(|part| !part.is_empty()) {
        if matches!(part, "." | "..") {
            return Err(Refusal(format!(
                "the brick path in {shown} may not hold '.' or '..'"
            )));
        }
        if part.chars().any(char::is_control) {
            return Err(Refusal(format!(
                "the brick path in {shown} holds a control character"
            )));
        }
        path.push('/');
        path.push_str(part);
    }
    if path.is_empty() {
        return Err(Refusal(format!(
            "{shown}: the root directory cannot be a brick"
        )));
    }
    if path.len() > BRICK_PATH_BYTES_MAX {
        return Err(Refusal(format!(
            "the brick path has {} bytes; at most {BRICK_PATH_BYTES_MAX} are allowed",
            path.len()
        )));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(replica: u32, transport: &str, bricks: &[&str]) -> String {
        let bricks: Vec<String> = bricks.iter().map(|b| (*b).to_owned()).collect();
        check_request(replica, transport, &bricks).unwrap_err().0
    }

    #[test]
    fn a_brick_is_host_and_absolute_path() {
        let spec: BrickSpec = "gfs01://data//b1/".parse().unwrap();
        assert_eq!(spec.to_string(), "gfs01:/data/b1");
        assert_eq!("[fd00::1]:/b".parse::<BrickSpec>().unwrap().host, "fd00::1");
        for bad in [
            "gfs01:data",
            "/data",
            "gfs01",
            ":/data",
            "-x:/data",
            "a b:/data",
            "",
        ] {
            let said = bad.parse::<BrickSpec>().unwrap_err().0;
            assert!(said.starts_with("Wrong brick type: "), "{bad}: {said}");
        }
        assert!(
            "h:/a/../b"
                .parse::<BrickSpec>()
                .unwrap_err()
                .0
                .contains("'..'")
        );
        assert!(
            "h:/a\nb"
                .parse::<BrickSpec>()
                .unwrap_err()
                .0
                .contains("control character")
        );
        assert!(
            "h:/"
                .parse::<BrickSpec>()
                .unwrap_err()
                .0
                .contains("root directory")
        );
        let long = format!("h:/{}", "x".repeat(2000));
        assert!(
            long.parse::<BrickSpec>()
                .unwrap_err()
                .0
                .contains("2001 bytes")
        );
    }

    #[test]
    fn counts_transport_and_doubles_are_checked() {
        assert!(refusal(2, "rdma", &["a:/b", "b:/b"]).contains("incorrect transport"));
        assert!(refusal(0, "tcp", &["a:/b"]).contains("between 1 and 3"));
        assert!(refusal(4, "tcp", &["a:/b"]).contains("between 1 and 3"));
        assert!(refusal(2, "tcp", &["a:/b"]).contains("not a multiple of replica count"));
        assert!(refusal(2, "tcp", &["a:/b", "a:/b/"]).contains("Found duplicate exports a:/b"));
        assert!(refusal(1, "", &[]).contains("no bricks"));
        assert!(refusal(1, "", &["a:/b", "b:/b"]).contains("exactly 1 brick"));
    }
}
