//! The admin socket.

use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use super::AdminService;

/// Connections that wait to be taken.
const BACKLOG: i32 = 64;
/// How long a command under way may take once the socket is told to stop.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// Why the admin socket is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another brickd answers on it.
    #[error("another brickd serves {0} already: stop it, or give this one another --socket")]
    Taken(PathBuf),
    /// Something else has that name.
    #[error("{0} is not a socket: give another --socket, or move it away")]
    NotSocket(PathBuf),
    /// The system refuses.
    #[error("cannot serve the admin socket {path}: {source}")]
    System {
        /// The socket.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
}

/// Serves the admin service on a unix socket (mode 0600) until `shutdown` resolves; then what is
/// under way gets 2 s to end and the socket is removed.
///
/// # Errors
/// When the socket cannot be made, or another brickd answers on it.
pub async fn serve_socket(
    path: &Path,
    service: AdminService,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let failed = |source| ServeError::System {
        path: path.to_owned(),
        source,
    };
    remove_stale(path)?;
    let listener = UnixListener::from_std(listen(path).map_err(failed)?).map_err(failed)?;
    tracing::info!(socket = %path.display(), "admin socket open");
    let (told, mut tell) = tokio::sync::watch::channel(());
    let serving = Server::builder()
        .add_service(service.server())
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move {
            shutdown.await;
            drop(told);
        });
    let too_long = async {
        // Ends when the sender is dropped, which is the sign to stop.
        while tell.changed().await.is_ok() {}
        tokio::time::sleep(DRAIN_MAX).await;
    };
    let ended = tokio::select! {
        ended = serving => ended.map_err(|error| failed(io::Error::other(error))),
        () = too_long => Ok(()),
    };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        Ok(()) | Err(_) => ended,
    }
}

/// A socket file that nobody answers on is what a killed brickd left.
fn remove_stale(path: &Path) -> Result<(), ServeError> {
    let failed = |source| ServeError::System {
        path: path.to_owned(),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ServeError::NotSocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(_) => Err(ServeError::Taken(path.to_owned())),
    }
}

/// Binds, narrows the mode, and only then listens: nobody can connect to a bound socket that does
/// not listen, so there is no moment at which others than root could (brickd's umask is 0).
fn listen(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}
