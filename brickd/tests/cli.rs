//! The program `mortar` as it is run, against a brickd that answers from a script: what it prints,
//! as text and as JSON, its exit status, and each kind of bad input.

#[path = "cli/fixture.rs"]
mod fixture;

use fixture::{Fake, Ran, mortar};
use mortar_proto::control::{
    BrickHeal, BrickState, ClientState, CopyRole, Done, HealEntry, PeerState, PeerStatusReply,
    RegistryMember, RegistryStatusReply, VolumeHealReply, VolumeStatusReply,
};
use mortar_proto::registry::{
    Brick, BrickStatus, Copy, Epoch, Peer, ReplicaSet, View, Volume, VolumeStatus,
};
use serde_json::{Value, json};

fn peer(id: u64, host: &str) -> Peer {
    Peer {
        id,
        uuid: format!("{id:08}-aaaa-bbbb-cccc-dddddddddddd"),
        host: host.to_owned(),
        port: 24017,
        other_names: Vec::new(),
    }
}

fn volume(name: &str) -> Volume {
    let brick = |id: u64, peer| Brick {
        id,
        peer,
        path: format!("/data/{name}"),
        status: BrickStatus::BrickUp.into(),
    };
    let epoch = Epoch {
        number: 3,
        id: u64::MAX,
        in_sync: vec![Copy {
            brick: 11,
            incarnation: 5,
        }],
        primary: 11,
    };
    Volume {
        name: name.to_owned(),
        id: (0..16).collect(),
        status: VolumeStatus::VolumeStarted.into(),
        replica: 2,
        bricks: vec![brick(11, 1), brick(12, 2)],
        sets: vec![ReplicaSet {
            bricks: vec![11, 12],
            epoch: Some(epoch),
            ..Default::default()
        }],
        options: [("network.ping-timeout".to_owned(), "10".to_owned())].into(),
        ..Default::default()
    }
}

/// Two peers, gfs01 (asked) and gfs02, and the volume gv0.
fn two_peers() -> Fake {
    let view = View {
        peers: [(1, peer(1, "gfs01")), (2, peer(2, "gfs02"))].into(),
        volumes: [("gv0".to_owned(), volume("gv0"))].into(),
        ..Default::default()
    };
    Fake::start(move |script| script.view = view.clone())
}

fn json_of(ran: &Ran) -> Value {
    serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

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

fn status_reply() -> VolumeStatusReply {
    let up = BrickState {
        id: 11,
        host: "gfs01".to_owned(),
        path: "/data/gv0".to_owned(),
        port: 24017,
        online: true,
        pid: 1234,
        role: CopyRole::CopyPrimary.into(),
        file_system: "ext4".to_owned(),
        device: "/dev/sdb1".to_owned(),
        mount_options: "rw,relatime".to_owned(),
        inode_bytes: 256,
        bytes_free: 3 << 29,
        bytes_total: 10 << 30,
        inodes: 1000,
        inodes_free: 900,
        clients: vec![ClientState {
            host: "10.0.0.9".to_owned(),
            pid: 77,
            mount_point: "/mnt".to_owned(),
            bytes_read: 5,
            bytes_written: 6,
            session: 1,
        }],
        ..Default::default()
    };
    let down = BrickState {
        id: 12,
        host: "gfs02".to_owned(),
        path: "/data/gv0".to_owned(),
        detail: "gfs02 does not answer".to_owned(),
        ..Default::default()
    };
    let volume = Some(volume("gv0"));
    VolumeStatusReply {
        volume,
        bricks: vec![up, down],
        problem: None,
        others: Vec::new(),
    }
}

#[test]
fn volume_status_table() {
    let fake = Fake::start(|script| script.status = status_reply());
    let dashes = "-".repeat(78);
    let expected = format!(
        "Status of volume: gv0\n\
         Mortar process                              TCP Port  RDMA Port  Online  Pid\n\
         {dashes}\n\
         Brick gfs01:/data/gv0                       24017     0          Y       1234 \n\
         Brick gfs02:/data/gv0                       N/A       N/A        N       N/A  \n\
         Self-heal Daemon on gfs01                   N/A       N/A        Y       1234 \n\
         Self-heal Daemon on gfs02                   N/A       N/A        N       N/A  \n \n\
         Note: gfs02:/data/gv0: gfs02 does not answer\n \n\
         Task Status of Volume gv0\n\
         {dashes}\n\
         There are no active volume tasks\n \n"
    );
    assert_eq!(fake.run("volume status gv0").ok(), expected);
    assert_eq!(fake.run("volume status").ok(), expected);
    let json = json_of(&fake.run("--json volume status gv0"));
    let bricks = &json["volumes"][0]["bricks"];
    assert_eq!(
        (&bricks[0]["role"], &bricks[0]["online"]),
        (&json!("primary"), &json!(true))
    );
    assert_eq!(bricks[1]["detail"], "gfs02 does not answer");
}

#[test]
fn volume_status_detail_and_clients() {
    let fake = Fake::start(|script| script.status = status_reply());
    let detail = fake.run("volume status gv0 detail").ok();
    for line in [
        "Brick                : Brick gfs01:/data/gv0",
        "TCP Port             : 24017",
        "Online               : Y",
        "File System          : ext4",
        "Disk Space Free      : 1.5GB",
        "Total Disk Space     : 10.0GB",
        "Free Inodes          : 900",
        "Note                 : gfs02 does not answer",
    ] {
        assert!(
            detail.lines().any(|of_text| of_text.trim_end() == line),
            "{line}\n{detail}"
        );
    }
    let clients = fake.run("volume status gv0 clients").ok();
    assert!(
        clients.starts_with("Client connections for volume gv0\n"),
        "{clients}"
    );
    assert!(
        clients.contains("Brick : gfs01:/data/gv0\nClients connected : 1\n"),
        "{clients}"
    );
    assert!(clients.contains("10.0.0.9:77 "), "{clients}");
}

#[test]
fn volume_status_of_a_stopped_or_absent_volume() {
    for words in ["Volume gv0 is not started", "Volume gv0 does not exist"] {
        let fake = Fake::start(|script| {
            script.status = VolumeStatusReply {
                problem: Some(Done {
                    failed: true,
                    message: words.to_owned(),
                }),
                ..Default::default()
            };
        });
        assert_eq!(fake.run("volume status gv0").failed(), format!("{words}\n"));
    }
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

fn heal_reply() -> VolumeHealReply {
    let entry = |path: &str, gfid: &str| HealEntry {
        path: path.to_owned(),
        gfid: gfid.to_owned(),
        ..Default::default()
    };
    let pending = BrickHeal {
        host: "gfs01".to_owned(),
        path: "/data/gv0".to_owned(),
        status: "Connected".to_owned(),
        entries: vec![
            HealEntry {
                why: "data changed".to_owned(),
                ..entry("/dir/file1", "")
            },
            HealEntry {
                split_brain: true,
                ..entry("", "6a0c5bd3-0000-0000-0000-000000000001")
            },
            HealEntry {
                healing: true,
                ..entry("/new\nline", "")
            },
        ],
        total: 5,
        split_brain: 1,
        healing: 1,
        bytes_pending: 4096,
        bytes_healed: 1024,
        seconds_left: 3,
    };
    let down = BrickHeal {
        host: "gfs02".to_owned(),
        path: "/data/gv0".to_owned(),
        status: "Transport endpoint is not connected".to_owned(),
        ..Default::default()
    };
    VolumeHealReply {
        done: Some(Done::default()),
        bricks: vec![pending, down],
    }
}

#[test]
fn heal_info_and_its_kin() {
    let fake = Fake::start(|script| script.heal = heal_reply());
    assert_eq!(
        fake.run("volume heal gv0 info").ok(),
        "Brick gfs01:/data/gv0\n\
         /dir/file1 - data changed\n\
         <gfid:6a0c5bd3-0000-0000-0000-000000000001> - Is in split-brain\n\
         /new\\nline - Possibly undergoing heal\n\
         ... and 2 more\n\
         Status: Connected\n\
         Number of entries: 5\n\
         Bytes to heal: 4096 (1024 healed, about 3 s left)\n\
         \n\
         Brick gfs02:/data/gv0\n\
         Status: Transport endpoint is not connected\n\
         Number of entries: -\n\n"
    );
    let summary = fake.run("volume heal gv0 info summary").ok();
    assert!(
        summary.contains(
            "Total Number of entries: 5\n\
             Number of entries in heal pending: 3\n\
             Number of entries in split-brain: 1\n\
             Number of entries possibly healing: 1\n"
        ),
        "{summary}"
    );
    let split = fake.run("volume heal gv0 info split-brain").ok();
    assert!(
        split.contains("Number of entries in split-brain: 1\n"),
        "{split}"
    );
    assert!(
        split.contains("Number of entries in split-brain: -\n"),
        "{split}"
    );
    let count = fake.run("volume heal gv0 statistics heal-count").ok();
    assert!(
        count.starts_with(
            "Gathering count of entries to be healed on volume gv0 has been successful \n\n\
             Brick gfs01:/data/gv0\nNumber of entries: 5\n"
        ),
        "{count}"
    );
    let json = json_of(&fake.run("--json volume heal gv0 info"));
    assert_eq!(
        (&json["bricks"][0]["total"], &json["bricks"][1]["total"]),
        (&json!(5), &json!(null))
    );
    assert_eq!(json["bricks"][0]["entries"][2]["path"], "/new\nline");
}

#[test]
fn heal_is_launched_and_switched() {
    let fake = Fake::start(|script| script.heal = VolumeHealReply::default());
    for (words, kind) in [("", "index self heal"), (" full", "full self heal")] {
        assert_eq!(
            fake.run(&format!("volume heal gv0{words}")).ok(),
            format!(
                "Launching heal operation to perform {kind} on volume gv0 has been successful \n\
                 Use heal info commands to check status.\n"
            )
        );
    }
    let on = fake.run("volume heal gv0 enable").ok();
    assert_eq!(on, "Enable heal on volume gv0 has been successful \n");
    let fake = Fake::start(|script| {
        let message = "Self-heal-daemon is disabled. Heal will not be triggered on volume gv0";
        script.heal.done = Some(Done {
            failed: true,
            message: message.to_owned(),
        });
    });
    assert!(
        fake.run("volume heal gv0")
            .failed()
            .contains("unsuccessful:\nSelf-heal-daemon is")
    );
    let info = fake.run("volume heal gv0 info").failed();
    assert!(
        info.starts_with("volume heal: gv0: failed: Self-heal-daemon"),
        "{info}"
    );
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
fn mount_runs_the_helper_with_its_options() {
    let dir = tempfile::tempdir().unwrap();
    let helper = dir.path().join("mount.mortar");
    std::fs::write(&helper, "#!/bin/sh\necho \"$@\"\nexit 7\n").unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let ran = fixture::mortar_with_path(
        "mount gfs01,gfs02:/v01/sub /mnt -o ro,noatime -o log-level=debug",
        dir.path(),
    );
    assert_eq!(
        ran.out,
        "gfs01,gfs02:/v01/sub /mnt -o ro,noatime,log-level=debug\n"
    );
    assert_eq!(
        ran.code,
        Some(7),
        "the helper's exit status is the command's"
    );
}
