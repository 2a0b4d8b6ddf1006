//! The grammar, in process: what is understood, what is refused and in which words.

use clap::{CommandFactory, Parser};
use mortar_proto::control::{HealAction, ResetBrickStep};

use super::grammar::{Cli, Command, Mode, VolumeCommand, host_and_port};
use super::keywords::{self, Force, StatusView};
use super::{Failure, tools};

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn parse(line: &str) -> Cli {
    Cli::try_parse_from(line.split_whitespace()).unwrap_or_else(|error| panic!("{line}: {error}"))
}

fn refused<T: std::fmt::Debug>(result: Result<T, Failure>) -> String {
    result.unwrap_err().0
}

#[test]
fn the_grammar_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn beginnings_of_commands_are_accepted_when_only_one_fits() {
    let Command::Volume(VolumeCommand::Info { name }) = parse("mortar v i gv0").command else {
        panic!("not volume info")
    };
    assert_eq!(name.as_deref(), Some("gv0"));
    assert!(matches!(
        parse("mortar vol li").command,
        Command::Volume(VolumeCommand::List)
    ));
    for ambiguous in ["mortar p status", "mortar volume st v"] {
        assert!(
            Cli::try_parse_from(ambiguous.split_whitespace()).is_err(),
            "{ambiguous}"
        );
    }
}

#[test]
fn global_flags_go_anywhere() {
    for line in [
        "mortar --mode=script --json --host h:1 --timeout 7 volume stop v",
        "mortar volume stop v --mode=script --json --host h:1 --timeout 7",
    ] {
        let global = parse(line).global;
        assert_eq!(
            (global.mode, global.json, global.timeout),
            (Some(Mode::Script), true, 7)
        );
        assert_eq!(global.host.as_deref(), Some("h:1"));
    }
    assert!(Cli::try_parse_from(["mortar", "--timeout", "0", "volume", "list"]).is_err());
}

#[test]
fn create_takes_glusters_keywords() {
    let request =
        keywords::create("v01", &words("replica 2 transport tcp a:/b// b:/b force")).unwrap();
    assert_eq!(
        (request.replica, request.transport.as_str(), request.force),
        (2, "tcp", true)
    );
    assert_eq!(request.bricks, ["a:/b", "b:/b"]);
    let request = keywords::create("v", &words("a:/b")).unwrap();
    assert_eq!((request.replica, request.force), (1, false));
}

#[test]
fn create_refuses_what_is_wrong_in_a_sentence() {
    for (line, part) in [
        ("replica", "'replica' takes a value"),
        (
            "replica two a:/b",
            "replica count must be a number, not 'two'",
        ),
        ("replica 0 a:/b", "replica count must be between 1 and 3"),
        (
            "replica 4 a:/b b:/b c:/b d:/b",
            "replica count must be between 1 and 3",
        ),
        (
            "replica 2 a:/b",
            "number of bricks is not a multiple of replica count",
        ),
        (
            "replica 2 a:/b b:/b c:/b",
            "number of bricks is not a multiple of replica count",
        ),
        ("replica 2 a:/b a:/b/", "Found duplicate exports a:/b"),
        (
            "replica 2 a:b b:/b",
            "Wrong brick type: a:b, use <HOSTNAME>:<export-dir-abs-path>",
        ),
        (
            "transport rdma a:/b",
            "incorrect transport protocol specified",
        ),
        ("replica 2 arbiter 1 a:/b b:/b", "witness"),
        ("disperse 3 a:/b b:/b c:/b", "do not exist"),
        ("force", "no bricks given"),
        ("replica 1 force", "no bricks given"),
    ] {
        let said = refused(keywords::create("v", &words(line)));
        assert!(said.contains(part), "{line}: {said}");
    }
    for name in ["", "a/b", "..", "a\nb", &"v".repeat(300), "all"] {
        assert!(keywords::create(name, &words("a:/b")).is_err(), "{name:?}");
    }
}

#[test]
fn the_other_keywords() {
    assert_eq!(keywords::force(&[]).unwrap(), Force::No);
    assert_eq!(keywords::force(&words("force")).unwrap(), Force::Yes);
    let said = refused(keywords::force(&words("forse")));
    assert_eq!(
        said,
        "unrecognized word: forse (position 1); expected: force"
    );
    assert_eq!(keywords::start(&[]).unwrap(), (Force::No, None));
    let (force, brick) = keywords::start(&words("force a:/b")).unwrap();
    assert_eq!(
        (force, brick.unwrap().to_string()),
        (Force::Yes, "a:/b".to_owned())
    );
    assert!(keywords::start(&words("a:/b")).is_err());

    assert_eq!(keywords::status(&[]).unwrap(), (None, StatusView::Table));
    assert_eq!(
        keywords::status(&words("all detail")).unwrap(),
        (None, StatusView::Detail)
    );
    assert_eq!(
        keywords::status(&words("v clients")).unwrap(),
        (Some("v"), StatusView::Clients)
    );
    assert_eq!(
        keywords::status(&words("detail")).unwrap(),
        (None, StatusView::Detail)
    );
    assert!(refused(keywords::status(&words("v mem"))).contains("detail, clients"));

    assert_eq!(
        keywords::reset(&words("force")).unwrap(),
        Vec::<String>::new()
    );
    assert_eq!(keywords::reset(&words("k force")).unwrap(), ["k"]);
}

#[test]
fn heal_takes_glusters_keywords() {
    for (line, action) in [
        ("", HealAction::HealLaunch),
        ("full", HealAction::HealFull),
        ("enable", HealAction::HealEnable),
        ("disable", HealAction::HealDisable),
        ("info", HealAction::HealInfo),
        ("info summary", HealAction::HealInfoSummary),
        ("info split-brain", HealAction::HealInfoSplitBrain),
        ("statistics heal-count", HealAction::HealCount),
    ] {
        assert_eq!(
            keywords::heal(&words(line)).unwrap().action(),
            action,
            "{line}"
        );
    }
    let said = refused(keywords::heal(&words("info summery")));
    assert!(
        said.starts_with("unrecognized word: summery (position 2)"),
        "{said}"
    );
    assert!(refused(keywords::heal(&words("statistics"))).contains("heal-count"));
}

#[test]
fn hosts_get_the_usual_port() {
    for (host, address) in [
        ("gfs01", "gfs01:24017"),
        ("gfs01:5", "gfs01:5"),
        ("10.0.0.1", "10.0.0.1:24017"),
        ("fd00::1", "[fd00::1]:24017"),
        ("[fd00::1]", "[fd00::1]:24017"),
        ("[fd00::1]:5", "[fd00::1]:5"),
    ] {
        assert_eq!(host_and_port(host), address);
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let dir = tempfile::tempdir().unwrap();
    tools::man(dir.path()).unwrap();
    for page in [
        "mortar.1",
        "mortar-volume-create.1",
        "mortar-peer-probe.1",
        "mortar-brick-stop.1",
    ] {
        assert!(dir.path().join(page).is_file(), "{page}");
    }
    let page = std::fs::read_to_string(dir.path().join("mortar-volume-create.1")).unwrap();
    assert!(page.contains("replica"), "{page}");
}

#[test]
fn replace_and_reset_take_glusters_keywords() {
    let (brick, with) = keywords::replace_brick(&words("a:/b// c:/d/ commit force")).unwrap();
    assert_eq!(
        (brick.to_string(), with.to_string()),
        ("a:/b".into(), "c:/d".into())
    );
    for line in [
        "",
        "a:/b",
        "a:/b c:/d",
        "a:/b c:/d commit",
        "a:/b c:/d start",
        "a:/b c:/d commit force force",
    ] {
        let said = refused(keywords::replace_brick(&words(line)));
        assert!(said.contains("commit force"), "{line}: {said}");
    }
    assert!(
        refused(keywords::replace_brick(&words("b c:/d commit force"))).contains("Wrong brick")
    );

    let start = keywords::reset_brick(&words("a:/b start")).unwrap();
    assert_eq!(start.step(), ResetBrickStep::ResetBrickStart);
    assert_eq!((start.brick.as_str(), start.with.as_str()), ("a:/b", ""));
    for (line, force) in [
        ("a:/b a:/b/ commit", false),
        ("a:/b a:/b commit force", true),
    ] {
        let commit = keywords::reset_brick(&words(line)).unwrap();
        assert_eq!(commit.step(), ResetBrickStep::ResetBrickCommit);
        assert_eq!((commit.with.as_str(), commit.force), ("a:/b", force));
    }
    for line in [
        "",
        "a:/b",
        "a:/b commit",
        "a:/b start force",
        "a:/b a:/b start",
    ] {
        let said = refused(keywords::reset_brick(&words(line)));
        assert!(said.contains("'start'"), "{line}: {said}");
    }
}
