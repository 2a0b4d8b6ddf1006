//! The options a volume has: the one table behind `volume set`, `get`, `reset` and `set help`,
//! and the typed values the rest of Mortar reads.

use mortar_proto::registry::Volume;

use super::Refusal;
use crate::split::decide::{Favorite, Unit};

/// What values an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Whole seconds.
    Seconds,
    /// Whole percent.
    Percent,
    /// Bytes; `64MiB`, `64MB` and `64M` are understood (all binary, as gluster has it).
    Bytes,
    /// A plain number.
    Count,
    /// `on` or `off` (also enable, disable, yes, no, true, false, 1, 0).
    Switch,
    /// One of these words; its number is its place among them.
    Word(&'static [&'static str]),
}

/// One option. Numbers are in the unit of its kind.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// The full name.
    pub key: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// Lowest value allowed.
    pub min: u64,
    /// Highest value allowed.
    pub max: u64,
    /// The value when it is not set, as it is printed.
    pub default: &'static str,
    /// What it does.
    pub sentence: &'static str,
}

const PING_TIMEOUT: Spec = Spec {
    key: "network.ping-timeout",
    kind: Kind::Seconds,
    min: 1,
    max: 60,
    default: "5",
    sentence: "How long a peer or brick may be unreachable before the others go on without it.",
};
const STALL_TIMEOUT: Spec = Spec {
    key: "storage.stall-timeout",
    kind: Kind::Seconds,
    min: 1,
    max: 600,
    default: "20",
    sentence: "How long a brick's disk may sit on one change before the brick is put out.",
};
const RESERVE: Spec = Spec {
    key: "storage.reserve",
    kind: Kind::Percent,
    min: 0,
    max: 50,
    default: "1",
    sentence: "Share of a brick's disk kept free, 256 MiB at least: writes into it get ENOSPC.",
};
const SELF_HEAL: Spec = Spec {
    key: "cluster.self-heal-daemon",
    kind: Kind::Switch,
    min: 0,
    max: 1,
    default: "on",
    sentence: "Whether copies that lack changes are healed by themselves.",
};
const IO_TIMEOUT: Spec = Spec {
    key: "client.io-timeout",
    kind: Kind::Seconds,
    min: 0,
    max: 86_400,
    default: "0",
    sentence: "How long a client waits for bricks before it answers EIO; 0 = until they serve.",
};
const INODE_LIMIT: Spec = Spec {
    key: "client.inode-limit",
    kind: Kind::Count,
    min: 1_000,
    max: 100_000_000,
    default: "500000",
    sentence: "How many inodes a client remembers before it gives the oldest back to the kernel.",
};
const READDIR_MEMORY: Spec = Spec {
    key: "brick.readdir-memory",
    kind: Kind::Bytes,
    min: 1 << 20,
    max: 16 << 30,
    default: "64MiB",
    sentence: "Memory of a brick for sorted directory listings; beyond it they take several passes.",
};

const FAVORITE_CHILD: Spec = Spec {
    key: "cluster.favorite-child-policy",
    kind: Kind::Word(&["none", "size", "ctime", "mtime", "majority"]),
    min: 0,
    max: 4,
    default: "none",
    sentence: "Which version of a file that both sides of a split changed is taken without asking.",
};
const SPLIT_UNIT: Spec = Spec {
    key: "cluster.split-unit",
    kind: Kind::Word(&["file", "volume"]),
    min: 0,
    max: 1,
    default: "file",
    sentence: "What is decided at once after a split; with volume nothing is merged (databases).",
};

/// Every option there is, in the order `volume set help` shows them.
pub const TABLE: &[Spec] = &[
    PING_TIMEOUT,
    STALL_TIMEOUT,
    RESERVE,
    SELF_HEAL,
    FAVORITE_CHILD,
    SPLIT_UNIT,
    IO_TIMEOUT,
    INODE_LIMIT,
    READDIR_MEMORY,
];

/// The name of the option that `volume heal V enable|disable` sets.
pub const SELF_HEAL_KEY: &str = SELF_HEAL.key;

/// Whether healing starts by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelfHeal {
    /// It does.
    On,
    /// It waits.
    Off,
}

/// A volume's options as values. What is not set, or was set by a newer version to something this
/// one cannot read, has its default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// `network.ping-timeout`.
    pub ping_timeout_ms: u64,
    /// `storage.stall-timeout`.
    pub stall_timeout_ms: u64,
    /// `storage.reserve`, 0 to 50.
    pub reserve_percent: u64,
    /// `cluster.self-heal-daemon`.
    pub self_heal: SelfHeal,
    /// `cluster.favorite-child-policy`.
    pub favorite_child: Favorite,
    /// `cluster.split-unit`.
    pub split_unit: Unit,
    /// `client.io-timeout`; `None` = wait.
    pub io_timeout_ms: Option<u64>,
    /// `client.inode-limit`.
    pub inode_limit: u64,
    /// `brick.readdir-memory`.
    pub readdir_memory_bytes: u64,
}

impl Options {
    /// The options of a volume.
    pub fn of(volume: &Volume) -> Self {
        let value = |spec: &Spec| value(volume, spec);
        let io_timeout_secs = value(&IO_TIMEOUT);
        Options {
            ping_timeout_ms: value(&PING_TIMEOUT) * 1000,
            stall_timeout_ms: value(&STALL_TIMEOUT) * 1000,
            reserve_percent: value(&RESERVE),
            self_heal: if value(&SELF_HEAL) == 1 {
                SelfHeal::On
            } else {
                SelfHeal::Off
            },
            favorite_child: match value(&FAVORITE_CHILD) {
                1 => Favorite::Size,
                2 => Favorite::Ctime,
                3 => Favorite::Mtime,
                4 => Favorite::Majority,
                _ => Favorite::None,
            },
            split_unit: match value(&SPLIT_UNIT) {
                1 => Unit::Volume,
                _ => Unit::File,
            },
            io_timeout_ms: (io_timeout_secs > 0).then_some(io_timeout_secs * 1000),
            inode_limit: value(&INODE_LIMIT),
            readdir_memory_bytes: value(&READDIR_MEMORY),
        }
    }
}

/// The value of one option of a volume, in the unit of its kind (a switch is 1 or 0).
pub fn value(volume: &Volume, spec: &Spec) -> u64 {
    let set = volume
        .options
        .get(spec.key)
        .and_then(|text| spec.parse(text).ok());
    set.or_else(|| spec.parse(spec.default).ok())
        .unwrap_or(spec.min)
}

/// The option called `key`: by its full name, or by the part after the dot if only one has it.
///
/// # Errors
/// A sentence that names the nearest option.
pub fn find(key: &str) -> Result<&'static Spec, Refusal> {
    if let Some(spec) = TABLE.iter().find(|spec| spec.key == key) {
        return Ok(spec);
    }
    let mut short = TABLE.iter().filter(|spec| spec.short() == key);
    if let (Some(spec), None) = (short.next(), short.next()) {
        return Ok(spec);
    }
    let guess = nearest(key).map_or_else(
        || "See 'mortar volume set help'.".to_owned(),
        |near| format!("Did you mean {near}?"),
    );
    Err(Refusal(format!(
        "option : {} does not exist. {guess}",
        key.escape_debug()
    )))
}

impl Spec {
    /// Reads a value; the number is in the unit of the option's kind.
    ///
    /// # Errors
    /// A sentence with the range.
    pub fn parse(&self, text: &str) -> Result<u64, Refusal> {
        let read = match self.kind {
            Kind::Seconds => number(text, &[("s", 1), ("sec", 1), ("min", 60)]),
            Kind::Percent => number(text, &[("%", 1)]),
            Kind::Bytes => number(text, BYTE_UNITS),
            Kind::Count => number(text, &[]),
            Kind::Switch => switch(text),
            Kind::Word(words) => {
                let at = words.iter().position(|word| *word == text.trim());
                at.map(|at| at as u64)
            }
        };
        match read {
            Some(value) if (self.min..=self.max).contains(&value) => Ok(value),
            _ => Err(Refusal(format!(
                "'{}' is not a value of {}: it takes {}",
                text.escape_debug(),
                self.key,
                self.range()
            ))),
        }
    }

    /// The range with its unit, for people.
    pub fn range(&self) -> String {
        match self.kind {
            Kind::Switch => "on or off".to_owned(),
            Kind::Word(words) => words.join(", "),
            Kind::Bytes => format!("{} to {} bytes", bytes_text(self.min), bytes_text(self.max)),
            _ => format!("{} to {}{}", self.min, self.max, self.unit_suffix()),
        }
    }

    /// The unit, for people.
    pub fn unit(&self) -> &'static str {
        match self.kind {
            Kind::Seconds => "seconds",
            Kind::Percent => "percent",
            Kind::Bytes => "bytes",
            Kind::Count => "number",
            Kind::Switch => "on/off",
            Kind::Word(_) => "word",
        }
    }

    fn unit_suffix(&self) -> &'static str {
        match self.kind {
            Kind::Seconds => " seconds",
            Kind::Percent => " percent",
            Kind::Bytes | Kind::Count | Kind::Switch | Kind::Word(_) => "",
        }
    }

    fn short(&self) -> &'static str {
        self.key
            .split_once('.')
            .map_or(self.key, |(_, short)| short)
    }
}

const BYTE_UNITS: &[(&str, u64)] = &[
    ("B", 1),
    ("KB", 1 << 10),
    ("KiB", 1 << 10),
    ("K", 1 << 10),
    ("MB", 1 << 20),
    ("MiB", 1 << 20),
    ("M", 1 << 20),
    ("GB", 1 << 30),
    ("GiB", 1 << 30),
    ("G", 1 << 30),
];

fn number(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let unit = text[digits.len()..].trim();
    let factor = if unit.is_empty() {
        1
    } else {
        units
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit))?
            .1
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

fn switch(text: &str) -> Option<u64> {
    match text.trim().to_ascii_lowercase().as_str() {
        "on" | "enable" | "yes" | "true" | "1" => Some(1),
        "off" | "disable" | "no" | "false" | "0" => Some(0),
        _ => None,
    }
}

fn bytes_text(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 30) {
        format!("{}GiB", bytes >> 30)
    } else {
        format!("{}MiB", bytes >> 20)
    }
}

/// The option whose name takes the fewest edits, if it is near enough to be what was meant.
fn nearest(key: &str) -> Option<&'static str> {
    /// Names longer than this are not guessed at: the work grows with the length.
    const GUESSED_BYTES_MAX: usize = 64;
    if key.len() > GUESSED_BYTES_MAX {
        return None;
    }
    let near = |spec: &Spec| edits(key, spec.key).min(edits(key, spec.short()) + 1);
    let best = TABLE.iter().min_by_key(|spec| near(spec))?;
    (near(best) <= 3 + key.len() / 4).then_some(best.key)
}

/// Levenshtein's distance in bytes.
fn edits(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, left) in one.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (col, right) in other.bytes().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[col + 1];
            row[col + 1] = replaced.min(diagonal + 1).min(row[col] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_in_its_range() {
        for spec in TABLE {
            assert!(spec.parse(spec.default).is_ok(), "{}", spec.key);
            assert!(spec.sentence.ends_with('.'), "{}", spec.key);
        }
        let options = Options::of(&Volume::default());
        assert_eq!(options.ping_timeout_ms, 5_000);
        assert_eq!(options.stall_timeout_ms, 20_000);
        assert_eq!(options.reserve_percent, 1);
        assert_eq!(options.self_heal, SelfHeal::On);
        assert_eq!(options.favorite_child, Favorite::None);
        assert_eq!(options.split_unit, Unit::File);
        assert_eq!(options.io_timeout_ms, None);
        assert_eq!(options.inode_limit, 500_000);
        assert_eq!(options.readdir_memory_bytes, 64 << 20);
    }

    #[test]
    fn what_is_set_is_read() {
        let mut volume = Volume::default();
        for (key, text) in [
            ("network.ping-timeout", "10s"),
            ("storage.reserve", "5%"),
            ("cluster.self-heal-daemon", "disable"),
            ("client.io-timeout", "2min"),
            ("brick.readdir-memory", "128MB"),
            ("cluster.favorite-child-policy", "mtime"),
            ("cluster.split-unit", "volume"),
            ("client.inode-limit", "unreadable"),
        ] {
            volume.options.insert(key.to_owned(), text.to_owned());
        }
        let options = Options::of(&volume);
        assert_eq!(options.ping_timeout_ms, 10_000);
        assert_eq!(options.reserve_percent, 5);
        assert_eq!(options.self_heal, SelfHeal::Off);
        assert_eq!(options.favorite_child, Favorite::Mtime);
        assert_eq!(options.split_unit, Unit::Volume);
        assert_eq!(options.io_timeout_ms, Some(120_000));
        assert_eq!(options.readdir_memory_bytes, 128 << 20);
        assert_eq!(options.inode_limit, 500_000);
    }

    #[test]
    fn values_out_of_range_are_refused_with_the_range() {
        for bad in [
            "0",
            "61",
            "-1",
            "5.5",
            "",
            "five",
            "99999999999999999999",
            "5h",
            "1 2",
        ] {
            let said = PING_TIMEOUT.parse(bad).unwrap_err().0;
            assert!(said.contains("1 to 60 seconds"), "{bad}: {said}");
        }
        assert!(
            READDIR_MEMORY
                .parse("1K")
                .unwrap_err()
                .0
                .contains("1MiB to 16GiB bytes")
        );
        assert!(
            SELF_HEAL
                .parse("maybe")
                .unwrap_err()
                .0
                .contains("on or off")
        );
    }

    #[test]
    fn names_are_found_and_guessed() {
        assert_eq!(find("ping-timeout").unwrap().key, "network.ping-timeout");
        let said = find("network.pingtimeout").unwrap_err().0;
        assert!(
            said.ends_with("Did you mean network.ping-timeout?"),
            "{said}"
        );
        assert!(
            find("self-heal-deamon")
                .unwrap_err()
                .0
                .contains("cluster.self-heal-daemon?")
        );
        assert!(
            find("performance.cache-size")
                .unwrap_err()
                .0
                .contains("set help")
        );
        assert!(
            find(&"x".repeat(10_000))
                .unwrap_err()
                .0
                .contains("set help")
        );
    }
}
