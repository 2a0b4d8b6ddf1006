//! `volume status`, `volume heal` and `volume check`.

use mortar_proto::control::{
    BrickHeal, BrickState, CheckFinding, CheckedBrick, ClientState, CopyRole, Done, HealEntry,
    VolumeCheckReply, VolumeHealReply, VolumeStatusReply,
};
use serde_json::json;

use crate::fixture::Fake;
use crate::samples::{json_of, volume};

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
        ..Default::default()
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
fn volume_check_tells_what_is_wrong_and_its_exit_status_says_so() {
    let clean = VolumeCheckReply {
        end: true,
        bricks: vec![CheckedBrick {
            host: "gfs01".to_owned(),
            path: "/data/gv0".to_owned(),
            objects: 7,
            bytes: 4096,
        }],
        ..VolumeCheckReply::default()
    };
    let so_far = VolumeCheckReply::default();
    let fake = Fake::start(|script| script.check = vec![so_far.clone(), clean.clone()]);
    let brick = "Brick gfs01:/data/gv0\nNumber of objects: 7\nNumber of bytes: 4096\n\n";
    assert_eq!(
        fake.run("volume check gv0").ok(),
        format!("{brick}volume check: gv0: success: nothing is wrong\n")
    );
    assert_eq!(json_of(&fake.run("--json v check gv0"))["ok"], true);

    let finding = |path: &str, brick: &str, what: &str| CheckFinding {
        path: path.to_owned(),
        brick: brick.to_owned(),
        what: what.to_owned(),
        ..CheckFinding::default()
    };
    let dirty = VolumeCheckReply {
        findings: vec![
            finding("/a\nb", "", "mode: 1 on x, 2 on y"),
            finding("", "gfs01:/data/gv0", "stale mark: m"),
        ],
        total: 3,
        restless: 2,
        ..clean.clone()
    };
    let fake = Fake::start(|script| script.check = vec![so_far.clone(), dirty.clone()]);
    let ran = fake.run("volume check gv0");
    assert_eq!((ran.code, ran.err.as_str()), (Some(1), ""));
    assert_eq!(
        ran.out,
        format!(
            "{brick}/a\\nb - mode: 1 on x, 2 on y\nBrick gfs01:/data/gv0 - stale mark: m\n\
             ... and 1 more\nNote: 2 objects changed at every look and were not judged\n\
             volume check: gv0: failed: 3 findings\n"
        )
    );
    let ran = fake.run("--json volume check gv0");
    let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((ran.code, &json["ok"]), (Some(1), &json!(false)));
    assert_eq!(json["findings"][1]["what"], "stale mark: m");

    // It ends before it has told.
    let fake = Fake::start(|script| script.check = vec![so_far.clone()]);
    let failed = fake.run("volume check gv0").failed();
    assert!(failed.contains("brickd ended before"), "{failed}");
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
