//! The life and the options of volumes.

use serde_json::json;

use crate::fixture::{Fake, mortar};
use crate::samples::{json_of, peer, two_peers};

#[test]
fn volume_create_sends_what_was_typed() {
    let fake = two_peers();
    let typed = "volume create v01 replica 2 transport tcp gfs01:/b gfs02:/b force";
    assert_eq!(
        fake.run(typed).ok(),
        "volume create: v01: success: please start the volume to access data\n"
    );
    assert_eq!(fake.asked(), ["create v01 2 tcp gfs01:/b,gfs02:/b true"]);
    fake.refuse("Volume v01 already exists");
    assert_eq!(
        fake.run(typed).failed(),
        "volume create: v01: failed: Volume v01 already exists\n"
    );
    fake.refuse("no quorum: 1 of 2 voters reachable");
    let ran = fake.run(&format!("--json {typed}"));
    assert_eq!(ran.code, Some(1));
    let message = "volume create: v01: failed: no quorum: 1 of 2 voters reachable";
    assert_eq!(json_of(&ran), json!({ "ok": false, "message": message }));
    assert_eq!(ran.err, format!("{message}\n"));
}

#[test]
fn replica_2_with_two_voters_asks_and_names_the_cure() {
    let fake = two_peers();
    let typed = "volume create v01 replica 2 gfs01:/b gfs02:/b";
    let said = fake.run(typed).failed();
    assert!(
        said.contains("witness") && said.contains("--mode=script"),
        "{said}"
    );
    let asked = fake.run_with_input(&format!("--mode=interactive {typed}"), "n\n");
    assert_eq!(asked.code, Some(1));
    assert!(
        asked.err.contains("Do you still want to continue? (y/n) "),
        "{asked:?}"
    );
    assert!(fake.asked().is_empty(), "nothing was created");
    fake.run_with_input(&format!("--mode=interactive {typed}"), "y\n")
        .ok();
    fake.run(&format!("--mode=script {typed}")).ok();
    assert_eq!(fake.asked().len(), 2);
}

#[test]
fn replica_2_with_a_witness_does_not_ask() {
    let fake = Fake::start(|script| {
        script.view.peers = (1..=3)
            .map(|id| (id, peer(id, &format!("gfs0{id}"))))
            .collect();
    });
    fake.run("volume create v01 replica 2 gfs01:/b gfs02:/b")
        .ok();
}

#[test]
fn stop_and_delete_ask() {
    let fake = two_peers();
    for (command, question) in [
        (
            "volume stop gv0",
            "Stopping volume will make its data inaccessible.",
        ),
        (
            "volume delete gv0",
            "Deleting volume will erase all information about the volume.",
        ),
    ] {
        let said = fake.run(command).failed();
        assert!(
            said.contains(question) && said.contains("--mode=script"),
            "{said}"
        );
    }
    let ended = fake.run_with_input("--mode=interactive volume stop gv0", "");
    assert!(ended.failed().contains("not answered"));
    assert!(fake.asked().is_empty());
    assert_eq!(
        fake.run("--mode=script volume stop gv0").ok(),
        "volume stop: gv0: success\n"
    );
    assert_eq!(
        fake.run("volume stop gv0 force").ok(),
        "volume stop: gv0: success\n"
    );
    let typed = fake.run_with_input("--mode=interactive volume delete gv0", "y\n");
    assert_eq!(typed.ok(), "volume delete: gv0: success\n");
    assert_eq!(fake.asked(), ["stop gv0", "stop gv0", "delete gv0"]);
}

#[test]
fn volume_start_with_force_and_a_brick_to_trust() {
    let fake = two_peers();
    assert_eq!(
        fake.run("volume start gv0").ok(),
        "volume start: gv0: success\n"
    );
    fake.run("volume start gv0 force").ok();
    fake.run("volume start gv0 force gfs02:/data/gv0/").ok();
    assert_eq!(
        fake.asked(),
        [
            "start gv0 false ",
            "start gv0 true ",
            "start gv0 true gfs02:/data/gv0"
        ]
    );
    fake.refuse("Volume gv0 already started");
    assert_eq!(
        fake.run("volume start gv0").failed(),
        "volume start: gv0: failed: Volume gv0 already started\n"
    );
}

#[test]
fn volume_info_and_list() {
    let fake = two_peers();
    let expected = " \n\
        Volume Name: gv0\n\
        Type: Replicate\n\
        Volume ID: 00010203-0405-0607-0809-0a0b0c0d0e0f\n\
        Status: Started\n\
        Snapshot Count: 0\n\
        Number of Bricks: 1 x 2 = 2\n\
        Transport-type: tcp\n\
        Bricks:\n\
        Brick1: gfs01:/data/gv0\n\
        Brick2: gfs02:/data/gv0\n\
        Options Reconfigured:\n\
        network.ping-timeout: 10\n";
    for command in [
        "volume info",
        "volume info all",
        "volume info gv0",
        "v i gv0",
    ] {
        assert_eq!(fake.run(command).ok(), expected, "{command}");
    }
    assert_eq!(
        fake.run("volume info nope").failed(),
        "Volume nope does not exist\n"
    );
    assert_eq!(fake.run("volume list").ok(), "gv0\n");
    assert_eq!(
        json_of(&fake.run("--json volume list")),
        json!({"ok": true, "volumes": ["gv0"]})
    );
    let json = json_of(&fake.run("volume info --json"));
    let gv0 = &json["volumes"][0];
    assert_eq!(
        (&gv0["name"], &gv0["status"]),
        (&json!("gv0"), &json!("Started"))
    );
    assert_eq!(gv0["bricks"][1]["name"], "gfs02:/data/gv0");
    // 64-bit ids are text: a reader that keeps numbers as doubles would change them.
    assert_eq!(gv0["sets"][0]["epoch"]["id"], "ffffffffffffffff");
    assert_eq!(gv0["sets"][0]["epoch"]["primary"], "000000000000000b");
}

#[test]
fn no_volumes() {
    let fake = Fake::start(|_| {});
    assert_eq!(fake.run("volume info").ok(), "No volumes present\n");
    assert_eq!(
        fake.run("volume list").ok(),
        "No volumes present in cluster\n"
    );
    assert_eq!(fake.run("volume status").ok(), "No volumes present\n");
}

#[test]
fn volume_set_get_and_reset() {
    let fake = two_peers();
    let typed = "volume set gv0 ping-timeout 7 storage.reserve 2%";
    assert_eq!(fake.run(typed).ok(), "volume set: success\n");
    assert_eq!(
        fake.asked(),
        ["set gv0 network.ping-timeout=7 storage.reserve=2%"]
    );
    fake.answer("reset volume successful");
    assert_eq!(
        fake.run("volume reset gv0 ping-timeout").ok(),
        "volume reset: success: reset volume successful\n"
    );
    assert_eq!(
        fake.run("volume get gv0 ping-timeout").ok(),
        format!(
            "{:<40} {:<39}\n{:<40} {:<39}\n{:<40} {:<39}\n",
            "Option", "Value", "------", "-----", "network.ping-timeout", "10"
        )
    );
    let all = fake.run("volume get gv0 all").ok();
    assert!(
        all.contains("client.inode-limit                       500000 (DEFAULT)"),
        "{all}"
    );
    let json = json_of(&fake.run("--json volume get gv0 all"));
    assert_eq!(
        json["options"]["storage.reserve"],
        json!({ "value": "1", "default": true })
    );
    let help = mortar("volume set help").ok();
    assert!(
        help.contains("Option: network.ping-timeout\nDefault Value: 5\n"),
        "{help}"
    );
    assert!(help.contains("Range: 1 to 60 seconds\n"), "{help}");
    let json = json_of(&mortar("--json volume set help"));
    assert_eq!(json["options"][0]["key"], "network.ping-timeout");
}

#[test]
fn bad_options_are_refused_before_anybody_is_asked() {
    for (typed, said) in [
        (
            "volume set v network.pingtimeout 5",
            "Did you mean network.ping-timeout?",
        ),
        ("volume set v ping-timeout 0", "it takes 1 to 60 seconds"),
        ("volume set v ping-timeout -1", "it takes 1 to 60 seconds"),
        ("volume set v ping-timeout", "give KEY VALUE pairs"),
        ("volume set v", "give KEY VALUE pairs"),
        (
            "volume set v ping-timeout 5 network.ping-timeout 6",
            "given twice",
        ),
        ("volume get v nonsense", "option : nonsense does not exist"),
        (
            "volume reset v nonsense",
            "option : nonsense does not exist",
        ),
    ] {
        let error = mortar(typed).failed();
        assert!(
            error.contains(said) && error.lines().count() == 1,
            "{typed}: {error}"
        );
    }
}
