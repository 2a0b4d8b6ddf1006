//! The program `mortar` as it is run, against a brickd that answers from a script: what it prints,
//! as text and as JSON, its exit status, and each kind of bad input.

#[path = "cli/fixture.rs"]
mod fixture;
#[path = "cli/reports.rs"]
mod reports;
#[path = "cli/samples.rs"]
mod samples;
#[path = "cli/volumes.rs"]
mod volumes;

use fixture::{Fake, mortar};
use mortar_proto::control::{PeerState, PeerStatusReply, RegistryMember, RegistryStatusReply};
use mortar_proto::registry::Peer;
use samples::{json_of, peer, two_peers};
use serde_json::json;

#[test]
fn peer_probe_and_detach() {
    let fake = two_peers();
    assert_eq!(fake.run("peer probe gfs03").ok(), "peer probe: success\n");
    assert_eq!(fake.asked(), ["probe gfs03"]);
    fake.answer("Probe on localhost not needed");
    assert_eq!(
        fake.run("peer probe gfs01").ok(),
        "peer probe: Probe on localhost not needed\n"
    );
    fake.refuse("gfs04 is either already part of another cluster or having volumes configured");
    assert_eq!(
        fake.run("peer probe gfs04").failed(),
        "peer probe: failed: gfs04 is either already part of another cluster or having volumes \
         configured\n"
    );
    assert_eq!(fake.run("peer detach gfs02").ok(), "peer detach: success\n");
    assert_eq!(
        fake.run("peer detach gfs02 force").ok(),
        "peer detach: success\n"
    );
    let asked = fake.asked();
    assert_eq!(
        asked[asked.len() - 2..],
        ["detach gfs02 false", "detach gfs02 true"]
    );
}

fn peers_reply() -> PeerStatusReply {
    let state = |peer: Peer, connected, local| PeerState {
        peer: Some(peer),
        connected,
        local,
        state: "Peer in Cluster".to_owned(),
    };
    let named = Peer {
        other_names: vec!["10.0.0.2".to_owned()],
        ..peer(2, "gfs02")
    };
    PeerStatusReply {
        peers: vec![
            state(peer(1, "gfs01"), true, true),
            state(named, true, false),
            state(peer(3, "gfs03"), false, false),
        ],
    }
}

#[test]
fn peer_status_and_pool_list() {
    let fake = Fake::start(|script| script.peers = peers_reply());
    assert_eq!(
        fake.run("peer status").ok(),
        "Number of Peers: 2\n\
         \n\
         Hostname: gfs02\n\
         Uuid: 00000002-aaaa-bbbb-cccc-dddddddddddd\n\
         State: Peer in Cluster (Connected)\n\
         Other names:\n\
         10.0.0.2\n\
         \n\
         Hostname: gfs03\n\
         Uuid: 00000003-aaaa-bbbb-cccc-dddddddddddd\n\
         State: Peer in Cluster (Disconnected)\n"
    );
    assert_eq!(
        fake.run("pool list").ok(),
        "UUID\t\t\t\t\tHostname \tState\n\
         00000001-aaaa-bbbb-cccc-dddddddddddd\tlocalhost\tConnected\n\
         00000002-aaaa-bbbb-cccc-dddddddddddd\tgfs02    \tConnected\n\
         00000003-aaaa-bbbb-cccc-dddddddddddd\tgfs03    \tDisconnected\n"
    );
    let json = json_of(&fake.run("--json pool list"));
    assert_eq!(json["ok"], true);
    assert_eq!(json["peers"][2]["host"], "gfs03");
    assert_eq!(json["peers"][2]["connected"], false);
    assert_eq!(json["peers"][0]["id"], "0000000000000001");
}

#[test]
fn bricks_are_stopped_and_started() {
    let fake = two_peers();
    let ran = fake.run("brick stop gfs01:/data/gv0/");
    assert_eq!(ran.ok(), "brick stop: gfs01:/data/gv0: success\n");
    assert_eq!(
        fake.run("brick start gfs01:/data/gv0").ok(),
        "brick start: gfs01:/data/gv0: success\n"
    );
    assert_eq!(
        fake.asked(),
        ["brick stop gfs01:/data/gv0", "brick start gfs01:/data/gv0"]
    );
    assert!(
        mortar("brick stop gfs01:data")
            .failed()
            .starts_with("Wrong brick type: gfs01:data")
    );
}

#[test]
fn registry_status_and_recover() {
    let member = |id, host: &str, voter, reachable, lag| RegistryMember {
        id,
        host: host.to_owned(),
        voter,
        matched: 100 - lag,
        lag,
        reachable,
    };
    let reply = RegistryStatusReply {
        local: 1,
        leader: 2,
        term: 7,
        applied: 100,
        last_log: 100,
        members: vec![
            member(1, "gfs01", true, true, 0),
            member(2, "gfs02", true, false, 9),
        ],
        state: "follower".to_owned(),
        generation: 1,
        snapshot: 50,
    };
    let fake = Fake::start(move |script| script.registry = reply.clone());
    let text = fake.run("registry status").ok();
    for part in [
        "State: follower\n",
        "Leader: gfs02\n",
        "Term: 7\n",
        "Voters: 2 (1 reachable)\n",
    ] {
        assert!(text.contains(part), "{part}{text}");
    }
    let json = json_of(&fake.run("--json registry status"));
    assert_eq!(json["leader"], "0000000000000002");
    assert_eq!(json["members"][1]["lag"], 9);
    assert!(fake.run("registry recover").failed().contains("--force"));
    fake.answer("generation 2 begins");
    let done = fake.run("registry recover --force").ok();
    assert_eq!(done, "registry recover: success: generation 2 begins\n");
}

#[test]
fn an_unreachable_brickd_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("none.sock");
    let said = mortar(&format!("--socket {} pool list", socket.display())).failed();
    let start = "Connection failed. Please check if brickd is operational.";
    assert!(
        said.starts_with(start) && said.contains(&socket.display().to_string()),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let said = mortar(&format!("--host {closed} pool list")).failed();
    assert!(
        said.starts_with(start) && said.contains(&closed.to_string()),
        "{said}"
    );
    let ran = mortar(&format!("--json --host {closed} pool list"));
    assert_eq!((ran.code, &json_of(&ran)["ok"]), (Some(1), &json!(false)));
}

#[test]
fn a_brickd_that_says_nothing_times_out() {
    let frozen = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = frozen.local_addr().unwrap();
    let began = std::time::Instant::now();
    let said = mortar(&format!("--timeout 1 --host {at} pool list")).failed();
    assert!(
        said.contains("timed out") || said.starts_with("Connection failed."),
        "{said}"
    );
    assert!(began.elapsed() < std::time::Duration::from_secs(10));
}

#[test]
fn bad_input_is_refused_in_one_sentence() {
    let long = format!("volume create {} gfs01:/b", "v".repeat(300));
    for (typed, said) in [
        (
            "volume create v replica 2 gfs01:relative gfs02:/b",
            "Wrong brick type: gfs01:relative",
        ),
        (
            "volume create v replica 2 gfs01:/b",
            "not a multiple of replica count",
        ),
        (
            "volume create v replica 2 gfs01:/b gfs01:/b",
            "Found duplicate exports gfs01:/b",
        ),
        (
            "volume create v replica 4 a:/b b:/b c:/b d:/b",
            "between 1 and 3",
        ),
        ("volume create v replica x a:/b", "must be a number"),
        (
            "volume create v transport rdma a:/b",
            "incorrect transport protocol",
        ),
        ("volume create a/b gfs01:/b", "may hold only letters"),
        (&long, "300 characters"),
        ("volume heal v inf", "unrecognized word: inf (position 1)"),
        (
            "volume stop v forse",
            "unrecognized word: forse (position 1)",
        ),
        ("volume start a.b", "may hold only letters"),
    ] {
        let error = mortar(typed).failed();
        assert!(
            error.contains(said) && error.lines().count() == 1,
            "{typed}: {error}"
        );
    }
    let empty = fixture::mortar_args(&["volume", "create", "", "gfs01:/b"], "");
    assert!(empty.failed().contains("cannot be empty"));
    let newline = fixture::mortar_args(&["volume", "create", "v", "gfs01:/a\nb"], "");
    assert!(newline.failed().contains("control character"));
}

#[test]
fn usage_errors_exit_with_2_and_show_the_usage() {
    for typed in [
        "volume create v",
        "volume",
        "nonsense",
        "volume st v",
        "peer probe",
        "",
    ] {
        let ran = mortar(typed);
        assert_eq!(ran.code, Some(2), "{typed}: {ran:?}");
        assert!(
            ran.err.contains("Usage:") || ran.err.contains("error:"),
            "{typed}: {ran:?}"
        );
    }
    assert!(mortar("--version").ok().starts_with("mortar 0."));
}

#[test]
fn completions_and_manual_pages() {
    for shell in ["bash", "zsh", "fish"] {
        let script = mortar(&format!("completions {shell}")).ok();
        assert!(
            script.contains("mortar") && script.contains("heal"),
            "{shell}"
        );
    }
    assert_eq!(mortar("completions csh").code, Some(2));
    let dir = tempfile::tempdir().unwrap();
    mortar(&format!("man {}", dir.path().display())).ok();
    assert!(dir.path().join("mortar-volume-heal.1").is_file());
}

#[test]
fn mount_is_the_very_program_that_mounts() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    let ran = mortar(&format!("mount gfs01:/v01 {at} -o ro,no-such-option"));
    assert_eq!(ran.code, Some(1), "wrong usage, as mount(8) has it");
    assert!(ran.err.contains("no-such-option"), "{}", ran.err);
    let ran = mortar(&format!(
        "mount no-such-host.invalid:/v01 {at} -o log-file={at}/log"
    ));
    assert_eq!(ran.code, Some(32), "the mount failed, as mount(8) has it");
    assert!(ran.err.contains("no-such-host.invalid"), "{}", ran.err);
}
