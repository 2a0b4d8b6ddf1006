//! A brickd that answers from a script on a unix socket, and the program run against it.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use mortar_proto::control::admin_server::{Admin, AdminServer};
use mortar_proto::control::{
    BrickName, Done, Empty, PeerDetachRequest, PeerName, PeerStatusReply, RegistryRecoverRequest,
    RegistryStatusReply, VolumeCheckReply, VolumeCreateRequest, VolumeHealReply, VolumeHealRequest,
    VolumeName, VolumeReplaceBrickRequest, VolumeResetBrickRequest, VolumeResetRequest,
    VolumeSetRequest, VolumeStartRequest, VolumeStatusReply,
};
use mortar_proto::registry::View;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

/// What the brickd answers.
#[derive(Default)]
pub struct Script {
    pub view: View,
    pub peers: PeerStatusReply,
    pub status: VolumeStatusReply,
    pub heal: VolumeHealReply,
    pub check: Vec<VolumeCheckReply>,
    pub registry: RegistryStatusReply,
    /// The answer to the next change; then plain success again.
    done: Done,
    asked: Vec<String>,
}

/// A running brickd; gone when dropped.
pub struct Fake {
    script: Arc<Mutex<Script>>,
    dir: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

/// What a run of `mortar` left.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Its output, if it succeeded and said nothing on standard error but questions.
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        assert!(
            self.err.is_empty() || self.err.ends_with("(y/n) "),
            "{self:?}"
        );
        self.out
    }

    /// What it said on standard error, if it failed and printed nothing else.
    pub fn failed(self) -> String {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert!(self.out.is_empty(), "{self:?}");
        self.err
    }
}

impl Fake {
    pub fn start(write: impl FnOnce(&mut Script)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut script = Script::default();
        write(&mut script);
        let script = Arc::new(Mutex::new(script));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        // Bound before this returns, so that a run finds it listening.
        let _in_runtime = runtime.enter();
        let listener = tokio::net::UnixListener::bind(dir.path().join("admin.sock")).unwrap();
        let service = AdminServer::new(Scripted(script.clone()));
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        drop(_in_runtime);
        Fake {
            script,
            dir,
            _runtime: runtime,
        }
    }

    /// Words of success for the next change.
    pub fn answer(&self, words: &str) {
        self.script.lock().unwrap().done = Done {
            failed: false,
            message: words.to_owned(),
        };
    }

    /// Refuses the next change.
    pub fn refuse(&self, why: &str) {
        self.script.lock().unwrap().done = Done {
            failed: true,
            message: why.to_owned(),
        };
    }

    /// Every change asked for so far.
    pub fn asked(&self) -> Vec<String> {
        self.script.lock().unwrap().asked.clone()
    }

    pub fn run(&self, words: &str) -> Ran {
        self.run_with_input(words, "")
    }

    pub fn run_with_input(&self, words: &str, input: &str) -> Ran {
        let words: Vec<&str> = words.split_whitespace().collect();
        run(
            command(&words).env("MORTAR_SOCKET", self.dir.path().join("admin.sock")),
            input,
        )
    }
}

/// Runs `mortar` where no brickd is.
pub fn mortar(words: &str) -> Ran {
    let words: Vec<&str> = words.split_whitespace().collect();
    mortar_args(&words, "")
}

/// The same with arguments that hold spaces or nothing.
pub fn mortar_args(words: &[&str], input: &str) -> Ran {
    run(&mut command(words), input)
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mortar"));
    command
        .args(words)
        .env("MORTAR_SOCKET", "/nonexistent/admin.sock");
    command
}

fn run(command: &mut Command, input: &str) -> Ran {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A program that refuses before it reads has closed its end already.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

struct Scripted(Arc<Mutex<Script>>);

type Answer<T> = Result<Response<T>, Status>;

impl Scripted {
    fn change(&self, asked: String, success: &str) -> Answer<Done> {
        let mut script = self.0.lock().unwrap();
        script.asked.push(asked);
        let mut done = std::mem::take(&mut script.done);
        if done == Done::default() {
            success.clone_into(&mut done.message);
        }
        Ok(Response::new(done))
    }

    fn read<T>(&self, read: impl FnOnce(&Script) -> T) -> Answer<T> {
        Ok(Response::new(read(&self.0.lock().unwrap())))
    }
}

#[tonic::async_trait]
impl Admin for Scripted {
    type VolumeCheckStream =
        tokio_stream::Iter<std::vec::IntoIter<Result<VolumeCheckReply, Status>>>;

    async fn volume_check(&self, _: Request<VolumeName>) -> Answer<Self::VolumeCheckStream> {
        self.read(|script| {
            let messages: Vec<_> = script.check.iter().cloned().map(Ok).collect();
            tokio_stream::iter(messages)
        })
    }
    async fn peer_probe(&self, request: Request<PeerName>) -> Answer<Done> {
        self.change(format!("probe {}", request.into_inner().host), "")
    }
    async fn peer_detach(&self, request: Request<PeerDetachRequest>) -> Answer<Done> {
        let request = request.into_inner();
        self.change(format!("detach {} {}", request.host, request.force), "")
    }
    async fn peer_status(&self, _: Request<Empty>) -> Answer<PeerStatusReply> {
        self.read(|script| script.peers.clone())
    }
    async fn volume_create(&self, request: Request<VolumeCreateRequest>) -> Answer<Done> {
        let request = request.into_inner();
        let asked = format!(
            "create {} {} {} {} {}",
            request.volume,
            request.replica,
            request.transport,
            request.bricks.join(","),
            request.force
        );
        self.change(asked, "please start the volume to access data")
    }
    async fn volume_start(&self, request: Request<VolumeStartRequest>) -> Answer<Done> {
        let request = request.into_inner();
        let asked = format!(
            "start {} {} {}",
            request.volume, request.force, request.trusted_brick
        );
        self.change(asked, "")
    }
    async fn volume_stop(&self, request: Request<VolumeName>) -> Answer<Done> {
        self.change(format!("stop {}", request.into_inner().volume), "")
    }
    async fn volume_delete(&self, request: Request<VolumeName>) -> Answer<Done> {
        self.change(format!("delete {}", request.into_inner().volume), "")
    }
    async fn volume_set(&self, request: Request<VolumeSetRequest>) -> Answer<Done> {
        let request = request.into_inner();
        let mut options: Vec<String> = request
            .options
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        options.sort();
        self.change(format!("set {} {}", request.volume, options.join(" ")), "")
    }
    async fn volume_reset(&self, request: Request<VolumeResetRequest>) -> Answer<Done> {
        let request = request.into_inner();
        self.change(
            format!("reset {} {}", request.volume, request.keys.join(" ")),
            "",
        )
    }
    async fn volume_replace_brick(
        &self,
        request: Request<VolumeReplaceBrickRequest>,
    ) -> Answer<Done> {
        let request = request.into_inner();
        self.change(
            format!(
                "replace {} {} {}",
                request.volume, request.brick, request.with
            ),
            "replace-brick commit force operation successful",
        )
    }
    async fn volume_reset_brick(&self, request: Request<VolumeResetBrickRequest>) -> Answer<Done> {
        let request = request.into_inner();
        self.change(
            format!("reset-brick {} {}", request.volume, request.brick),
            "",
        )
    }
    async fn get_view(&self, _: Request<Empty>) -> Answer<View> {
        self.read(|script| script.view.clone())
    }
    async fn volume_status(&self, request: Request<VolumeName>) -> Answer<VolumeStatusReply> {
        let all = request.into_inner().volume.is_empty();
        self.read(|script| match all {
            true => VolumeStatusReply {
                others: Some(script.status.clone())
                    .filter(|status| status.volume.is_some())
                    .into_iter()
                    .collect(),
                ..Default::default()
            },
            false => script.status.clone(),
        })
    }
    async fn volume_heal(&self, _: Request<VolumeHealRequest>) -> Answer<VolumeHealReply> {
        self.read(|script| script.heal.clone())
    }
    async fn brick_stop(&self, request: Request<BrickName>) -> Answer<Done> {
        self.change(format!("brick stop {}", request.into_inner().brick), "")
    }
    async fn brick_start(&self, request: Request<BrickName>) -> Answer<Done> {
        self.change(format!("brick start {}", request.into_inner().brick), "")
    }
    async fn registry_status(&self, _: Request<Empty>) -> Answer<RegistryStatusReply> {
        self.read(|script| script.registry.clone())
    }
    async fn registry_recover(&self, request: Request<RegistryRecoverRequest>) -> Answer<Done> {
        self.change(format!("recover {}", request.into_inner().force), "")
    }
}
