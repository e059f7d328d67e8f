//! Pulls from a hub on the loopback interface, whole ones and those that something goes wrong with.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    Cache, Hub, HubConfig, HubError, ModelRef, Progress, Pulled, Refused, Selection, Silent,
    config::Token,
    digest::Digest,
    listing::RemoteFile,
    mock_hub::{Answer, COMMIT, MockHub},
    partial::Storage,
    verify::State,
};

/// `sha256sum` of the weights.
const WEIGHTS: &str = "model.safetensors";
const SIZE: usize = 40_000;

/// A hub with a small model, and an empty cache.
struct Place {
    server: MockHub,
    directory: TempDir,
    waits: Arc<Mutex<Vec<Duration>>>,
}

impl Place {
    fn new() -> Self {
        let server = MockHub::new();
        server.put("README.md", "not needed");
        server.put("config.json", "{}");
        server.put_large(WEIGHTS, weights());
        Self { server, directory: tempfile::tempdir().unwrap(), waits: Arc::default() }
    }

    fn config(&self) -> HubConfig {
        let mut config = HubConfig::new(self.server.endpoint(), self.directory.path());
        let waits = self.waits.clone();
        config.retry.sleep = Arc::new(move |wait| waits.lock().unwrap().push(wait));
        config
    }

    fn pull(&self) -> Result<Pulled, HubError> {
        self.pull_with(self.config())
    }

    fn pull_with(&self, config: HubConfig) -> Result<Pulled, HubError> {
        Hub::new(config)?.pull(&model(), &Selection::default(), &Silent)
    }

    fn cache(&self) -> Cache {
        Cache::new(self.directory.path())
    }

    fn blob(&self) -> PathBuf {
        self.cache().blob(&model().id, &sha256())
    }

    fn partial(&self) -> PathBuf {
        self.blob().with_extension("incomplete")
    }

    fn leave_partial(&self, content: &[u8]) {
        fs::create_dir_all(self.partial().parent().unwrap()).unwrap();
        fs::write(self.partial(), content).unwrap();
    }

    /// What holds after every pull that worked.
    fn assert_whole(&self, pulled: &Pulled) {
        assert_eq!(pulled.snapshot, self.cache().find(&model()).unwrap());
        assert_eq!(fs::read(pulled.snapshot.join("config.json")).unwrap(), b"{}");
        assert!(fs::read(pulled.snapshot.join(WEIGHTS)).unwrap() == weights(), "the weights are others");
        let blobs: Vec<_> = fs::read_dir(self.blob().parent().unwrap()).unwrap().collect();
        assert_eq!(blobs.len(), 2, "{blobs:?}");
    }
}

fn model() -> ModelRef {
    "org/name".parse().unwrap()
}

fn weights() -> Vec<u8> {
    (0..SIZE).map(|index| (index * index / 7) as u8).collect()
}

fn sha256() -> Digest {
    let mut hasher = Digest::Sha256(String::new()).hasher(0);
    hasher.update(&weights());
    hasher.finish()
}

fn from(offset: usize) -> Option<String> {
    Some(format!("bytes={offset}-"))
}

#[test]
fn a_pull_brings_what_a_model_needs_and_the_next_one_asks_for_the_list_only() {
    let place = Place::new();
    let pulled = place.pull().unwrap();
    place.assert_whole(&pulled);
    assert_eq!(pulled.commit, COMMIT);
    let files: Vec<_> = pulled.files.iter().map(|file| (file.path.as_str(), file.size, file.downloaded)).collect();
    assert_eq!(files, [("config.json", 2, true), (WEIGHTS, SIZE as u64, true)]);

    let again = place.pull().unwrap();
    assert!(again.files.iter().all(|file| !file.downloaded));
    assert_eq!(place.server.requests("").len(), 4, "the list, two files, and the list again");
}

#[test]
fn the_layout_is_the_hubs_own() {
    let place = Place::new();
    let folder = place.directory.path().join("models--org--name");
    let snapshot = place.pull().unwrap().snapshot;
    assert_eq!(snapshot, folder.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(folder.join("refs/main")).unwrap(), COMMIT);
    // `printf '{}' | git hash-object --stdin`
    assert_eq!(fs::read(folder.join("blobs/9e26dfeeb6e641a33dae4961196235bdb965b21b")).unwrap(), b"{}");
    if cfg!(unix) {
        let link = fs::read_link(snapshot.join("config.json")).unwrap();
        assert_eq!(link, Path::new("../../blobs/9e26dfeeb6e641a33dae4961196235bdb965b21b"));
    }
}

#[test]
fn files_in_directories_link_as_far_up_as_they_lie_deep() {
    let place = Place::new();
    place.server.put("vision_tower/config.json", "{ }");
    let pulled = place.pull().unwrap();
    assert_eq!(fs::read(pulled.snapshot.join("vision_tower/config.json")).unwrap(), b"{ }");
    let paths: Vec<_> = place.cache().models().unwrap()[0].revisions[0].files.iter().map(|f| f.path.clone()).collect();
    assert_eq!(paths, ["config.json", WEIGHTS, "vision_tower/config.json"]);
}

#[test]
fn one_content_under_two_names_is_downloaded_once() {
    let place = Place::new();
    place.server.put("vision_tower/config.json", "{}");
    let pulled = place.pull().unwrap();
    place.assert_whole(&pulled);
    assert_eq!(place.server.requests("config.json").len(), 1);
    assert_eq!(fs::read(pulled.snapshot.join("vision_tower/config.json")).unwrap(), b"{}");
}

#[test]
fn an_empty_file_is_a_file() {
    let place = Place::new();
    place.server.put("merges.txt", "");
    let pulled = place.pull().unwrap();
    assert_eq!(fs::read(pulled.snapshot.join("merges.txt")).unwrap(), b"");
}

#[test]
fn a_connection_cut_in_the_body_is_taken_up_where_it_stopped() {
    let place = Place::new();
    place.server.answer(WEIGHTS, Answer { cut: Some(1000), ..Answer::default() });
    place.server.answer(WEIGHTS, Answer { cut: Some(500), ..Answer::default() });
    place.assert_whole(&place.pull().unwrap());
    assert_eq!(place.server.ranges(WEIGHTS), [None, from(1000), from(1500)]);
    let if_range = place.server.requests(WEIGHTS)[1].header("if-range").map(str::to_owned);
    assert_eq!(if_range, Some(format!("\"{}\"", sha256().hex())));
    assert_eq!(*place.waits.lock().unwrap(), [Duration::from_secs(1); 2], "each of them got further");
}

#[test]
fn a_connection_that_brings_nothing_is_given_up_after_a_few_tries() {
    let place = Place::new();
    for _ in 0..10 {
        place.server.answer(WEIGHTS, Answer { cut: Some(0), ..Answer::default() });
    }
    let error = place.pull().unwrap_err();
    assert_eq!(error.to_string(), "model.safetensors: expected 40000 bytes, got 0");
    let waits: Vec<_> = place.waits.lock().unwrap().iter().map(Duration::as_secs).collect();
    assert_eq!(waits, [1, 2, 4, 8, 16]);
    assert!(place.cache().find(&model()).is_err(), "main must not mean half a model");
}

#[test]
fn a_wrong_content_length_is_not_believed() {
    let place = Place::new();
    for announce in [SIZE - 1, SIZE + 1, 0, usize::MAX] {
        place.server.answer(WEIGHTS, Answer { announce: Some(announce), ..Answer::default() });
    }
    place.assert_whole(&place.pull().unwrap());
    assert_eq!(place.server.requests(WEIGHTS).len(), 5);
}

#[test]
fn a_flipped_byte_is_found_and_the_file_downloaded_anew() {
    let place = Place::new();
    place.server.answer(WEIGHTS, Answer { flip: Some(12_345), ..Answer::default() });
    place.assert_whole(&place.pull().unwrap());
    assert_eq!(place.server.ranges(WEIGHTS), [None, None]);
}

#[test]
fn a_byte_that_is_flipped_again_is_reported() {
    let place = Place::new();
    for _ in 0..2 {
        place.server.answer(WEIGHTS, Answer { flip: Some(7), ..Answer::default() });
    }
    let error = place.pull().unwrap_err();
    assert!(matches!(&error, HubError::Damaged { expected, .. } if expected.contains(sha256().hex())), "{error}");
    assert!(!place.blob().exists() && place.server.requests(WEIGHTS).len() == 2);
}

#[test]
fn a_flipped_byte_in_a_git_file_is_found_too() {
    let place = Place::new();
    place.server.answer("config.json", Answer { flip: Some(0), ..Answer::default() });
    place.assert_whole(&place.pull().unwrap());
    assert_eq!(place.server.requests("config.json").len(), 2);
}

#[test]
fn everything_in_answer_to_a_range_replaces_what_was_there() {
    let place = Place::new();
    place.leave_partial(&weights()[..3000]);
    place.server.answer(WEIGHTS, Answer { ignore_range: true, ..Answer::default() });
    place.assert_whole(&place.pull().unwrap());
    assert_eq!(place.server.ranges(WEIGHTS), [from(3000)]);
}

#[test]
fn a_range_that_is_refused_begins_anew() {
    let place = Place::new();
    place.leave_partial(&weights()[..3000]);
    place.server.answer(WEIGHTS, Answer { status: Some(416), ..Answer::default() });
    place.assert_whole(&place.pull().unwrap());
    assert_eq!(place.server.ranges(WEIGHTS), [from(3000), None]);
}

#[test]
fn a_part_that_begins_elsewhere_is_not_taken() {
    let place = Place::new();
    place.leave_partial(&weights()[..3000]);
    let elsewhere = vec![("Content-Range", "bytes 0-36999/40000".to_owned())];
    place.server.answer(WEIGHTS, Answer { status: Some(206), headers: elsewhere, ..Answer::default() });
    place.assert_whole(&place.pull().unwrap());
    assert_eq!(place.server.ranges(WEIGHTS), [from(3000), None]);
}

#[test]
fn too_many_requests_are_followed_by_the_wait_that_is_asked_for() {
    let place = Place::new();
    for path in ["/revision/main", WEIGHTS] {
        let headers = vec![("Retry-After", "7".to_owned())];
        place.server.answer(path, Answer { status: Some(429), headers, ..Answer::default() });
    }
    place.assert_whole(&place.pull().unwrap());
    assert_eq!(*place.waits.lock().unwrap(), [Duration::from_secs(7); 2]);
}

#[test]
fn a_server_error_passes() {
    let place = Place::new();
    for status in [500, 502, 503, 504] {
        place.server.answer(WEIGHTS, Answer { status: Some(status), ..Answer::default() });
    }
    place.assert_whole(&place.pull().unwrap());
    let waits: Vec<_> = place.waits.lock().unwrap().iter().map(Duration::as_secs).collect();
    assert_eq!(waits, [1, 2, 4, 8]);
}

#[test]
fn a_server_error_that_stays_is_reported() {
    let place = Place::new();
    for _ in 0..6 {
        let headers = vec![("X-Error-Message", "out of order".to_owned())];
        place.server.answer("/revision/main", Answer { status: Some(503), headers, ..Answer::default() });
    }
    let error = place.pull().unwrap_err().to_string();
    let expected = "/api/models/org/name/revision/main: the server answered 503 (out of order)";
    assert!(error.ends_with(expected), "{error}");
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_it_redirects_to() {
    let (place, storage) = (Place::new(), MockHub::new());
    storage.put_large(WEIGHTS, weights());
    let to = format!("{}/storage/{COMMIT}/{WEIGHTS}?signature=secret", storage.endpoint());
    place.server.answer(WEIGHTS, Answer { status: Some(302), headers: vec![("Location", to)], ..Answer::default() });
    let moved = "/api/models/new/name/revision/main".to_owned();
    let headers = vec![("Location", moved)];
    place.server.answer("org/name/revision/main", Answer { status: Some(307), headers, ..Answer::default() });

    let mut config = place.config();
    config.token = Token::new("hf_secret");
    place.assert_whole(&place.pull_with(config).unwrap());
    let at_hub = place.server.requests("");
    assert_eq!(at_hub.len(), 4, "the list, the moved list, two files");
    assert!(at_hub.iter().all(|request| request.header("authorization") == Some("Bearer hf_secret")));
    let at_storage = storage.requests("");
    assert_eq!(at_storage.len(), 1);
    assert_eq!(at_storage[0].header("authorization"), None);
}

#[test]
fn a_signature_is_in_no_message() {
    let (place, storage) = (Place::new(), MockHub::new());
    let to = format!("{}/storage?signature=secret", storage.endpoint());
    place.server.answer(WEIGHTS, Answer { status: Some(302), headers: vec![("Location", to)], ..Answer::default() });
    storage.answer("/storage", Answer { status: Some(403), ..Answer::default() });
    let error = place.pull().unwrap_err().to_string();
    assert_eq!(error, format!("{}/storage: the server answered 403", storage.endpoint()));
}

#[test]
fn redirects_in_a_circle_end() {
    let place = Place::new();
    for _ in 0..10 {
        let headers = vec![("Location", format!("/org/name/resolve/{COMMIT}/{WEIGHTS}"))];
        place.server.answer(WEIGHTS, Answer { status: Some(302), headers, ..Answer::default() });
    }
    assert!(matches!(place.pull().unwrap_err(), HubError::Redirect { .. }));
}

#[test]
fn a_body_that_stalls_is_left_and_taken_up() {
    let place = Place::new();
    place.server.answer(WEIGHTS, Answer { stall: Some(2000), ..Answer::default() });
    let mut config = place.config();
    config.stall_limit = Duration::from_millis(500);
    place.assert_whole(&place.pull_with(config).unwrap());
    assert_eq!(place.server.ranges(WEIGHTS), [None, from(2000)]);
}

#[test]
fn a_stale_partial_is_found_out_by_its_digest() {
    let place = Place::new();
    place.leave_partial(&[7; 3000]);
    place.assert_whole(&place.pull().unwrap());
    assert_eq!(place.server.ranges(WEIGHTS), [from(3000), None]);
}

#[test]
fn a_content_that_changes_between_two_tries_comes_from_its_beginning() {
    let place = Place::new();
    place.server.answer(WEIGHTS, Answer { cut: Some(1000), flip: Some(1), etag: Some("old"), ..Answer::default() });
    place.assert_whole(&place.pull().unwrap());
    // The server sees from `If-Range` that the first bytes are of another version, and sends all.
    assert_eq!(place.server.ranges(WEIGHTS), [None, from(1000)]);
    assert_eq!(place.server.requests(WEIGHTS)[1].header("if-range"), Some("\"old\""));
}

#[test]
fn a_partial_longer_than_the_file_begins_anew() {
    let place = Place::new();
    place.leave_partial(&[weights(), vec![0]].concat());
    place.assert_whole(&place.pull().unwrap());
    assert_eq!(place.server.ranges(WEIGHTS), [None]);
}

#[test]
fn a_partial_that_is_whole_already_needs_no_request() {
    let place = Place::new();
    place.leave_partial(&weights());
    place.assert_whole(&place.pull().unwrap());
    assert_eq!(place.server.requests(WEIGHTS).len(), 0);
}

#[test]
fn a_content_of_another_length_is_replaced() {
    let place = Place::new();
    place.pull().unwrap();
    fs::write(place.blob(), b"cut").unwrap();
    place.assert_whole(&place.pull().unwrap());
}

/// A file on a disk with room for 10000 bytes more.
struct SmallDisk {
    file: File,
    room: usize,
}

impl Read for SmallDisk {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Seek for SmallDisk {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl Write for SmallDisk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.room);
        if count == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.room -= count;
        self.file.write(&bytes[..count])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Storage for SmallDisk {
    fn set_length(&mut self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_called_so_and_what_has_come_is_kept() {
    let place = Place::new();
    let mut hub = Hub::new(place.config()).unwrap();
    hub.open = |path| {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        Ok(Box::new(SmallDisk { file, room: 10_000 }))
    };
    let error = hub.pull(&model(), &Selection::default(), &Silent).unwrap_err();
    assert!(matches!(&error, HubError::DiskFull { path } if *path == place.partial()), "{error}");
    assert!(place.waits.lock().unwrap().is_empty(), "a full disk gets no emptier by waiting");
    assert_eq!(fs::read(place.partial()).unwrap(), weights()[..10_000]);

    place.assert_whole(&place.pull().unwrap());
    assert_eq!(place.server.ranges(WEIGHTS), [None, from(10_000)]);
}

/// Does something once the lock of a file is waited for.
struct WhenWaiting<F>(Mutex<Option<F>>);

impl<F: FnOnce(&RemoteFile) + Send> Progress for WhenWaiting<F> {
    fn waiting(&self, file: &RemoteFile) {
        if let Some(act) = self.0.lock().unwrap().take() {
            act(file);
        }
    }
}

#[test]
fn a_lock_that_another_holds_is_waited_for() {
    let place = Place::new();
    let (lock, taken) = place.cache().try_lock(&model().id, &sha256()).unwrap();
    assert!(taken);
    // The other process finishes the file, then lets go.
    let (blob, content) = (place.blob(), weights());
    let finish = WhenWaiting(Mutex::new(Some(move |file: &RemoteFile| {
        assert_eq!(file.path, WEIGHTS);
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(blob, content).unwrap();
        drop(lock);
    })));
    let hub = Hub::new(place.config()).unwrap();
    let pulled = hub.pull(&model(), &Selection::default(), &finish).unwrap();
    assert!(finish.0.lock().unwrap().is_none(), "nobody waited");
    place.assert_whole(&pulled);
    assert_eq!(place.server.requests(WEIGHTS).len(), 0, "it is there already");
}

#[test]
fn refusals_say_what_is_refused_and_why() {
    for (status, code, reason) in [
        (401, None, Refused::Unauthorized),
        (401, Some("GatedRepo"), Refused::Gated),
        (403, Some("GatedRepo"), Refused::Gated),
        (403, None, Refused::Forbidden),
        (404, Some("RepoNotFound"), Refused::NoModel),
        (404, Some("RevisionNotFound"), Refused::NoRevision),
    ] {
        let place = Place::new();
        let headers = code.map(|code| ("X-Error-Code", code.to_owned())).into_iter().collect();
        place.server.answer("/revision/main", Answer { status: Some(status), headers, ..Answer::default() });
        match place.pull().unwrap_err() {
            HubError::Refused { what, reason: got } => assert_eq!((what.as_str(), got), ("org/name", reason)),
            other => panic!("{status} {code:?}: {other}"),
        }
        assert!(place.waits.lock().unwrap().is_empty(), "a refusal does not pass by waiting");
    }
}

#[test]
fn a_file_that_is_refused_is_named() {
    let place = Place::new();
    let headers = vec![("X-Error-Code", "GatedRepo".to_owned())];
    place.server.answer(WEIGHTS, Answer { status: Some(403), headers, ..Answer::default() });
    let error = place.pull().unwrap_err().to_string();
    assert!(error.starts_with("org/name, model.safetensors: access is gated"), "{error}");
}

#[test]
fn offline_the_cache_answers_and_nobody_is_asked() {
    let place = Place::new();
    let offline = || HubConfig { offline: true, ..place.config() };
    assert!(matches!(place.pull_with(offline()).unwrap_err(), HubError::Offline { .. }));
    assert_eq!(place.server.requests("").len(), 0);

    let online = place.pull().unwrap();
    let asked = place.server.requests("").len();
    let pulled = place.pull_with(offline()).unwrap();
    assert_eq!((&pulled.snapshot, &pulled.commit), (&online.snapshot, &online.commit));
    let files = |pulled: &Pulled| pulled.files.iter().map(|file| (file.path.clone(), file.size)).collect::<Vec<_>>();
    assert_eq!(files(&pulled), files(&online));
    assert_eq!(place.server.requests("").len(), asked);
}

#[test]
fn a_hub_that_is_not_there_is_named() {
    let place = Place::new();
    let endpoint = place.server.endpoint();
    let config = place.config();
    drop(place.server);
    let error = Hub::new(config).unwrap().pull(&model(), &Selection::default(), &Silent).unwrap_err();
    assert!(matches!(&error, HubError::Connection { url, .. } if url.starts_with(&endpoint)), "{error}");
}

#[test]
fn an_encrypted_endpoint_is_spoken_to_encrypted_or_not_at_all() {
    let place = Place::new();
    let mut config = place.config();
    config.endpoint = config.endpoint.replace("http:", "https:");
    (config.retry.attempts, config.stall_limit) = (1, Duration::from_millis(500));
    let error = place.pull_with(config).unwrap_err();
    // The server either gives up or waits for the end of a line that never comes.
    assert!(matches!(&error, HubError::Connection { .. } | HubError::Stalled { .. }), "{error}");
    assert_eq!(place.server.requests("").len(), 0, "the server, which speaks no TLS, understood something");
}

#[test]
fn a_file_name_that_leads_elsewhere_stops_the_pull_before_it_writes() {
    for name in ["../../../escaped", "/escaped", "a/../../escaped"] {
        let place = Place::new();
        place.server.put(name, "evil");
        let error = place.pull().unwrap_err();
        assert!(matches!(&error, HubError::FileName { name: named, .. } if named == name), "{error}");
        assert_eq!(fs::read_dir(place.directory.path()).unwrap().count(), 0, "{name}");
    }
}

#[test]
fn killed_between_the_content_and_its_link_the_next_pull_only_links() {
    let place = Place::new();
    let snapshot = place.pull().unwrap().snapshot;
    fs::remove_file(snapshot.join(WEIGHTS)).unwrap();
    fs::remove_dir_all(place.directory.path().join("models--org--name/refs")).unwrap();
    assert!(place.cache().find(&model()).is_err());
    place.assert_whole(&place.pull().unwrap());
    assert_eq!(place.server.requests(WEIGHTS).len(), 1);
}

#[test]
fn many_shards_come_side_by_side() {
    let place = Place::new();
    let shards: Vec<_> = (1..=9).map(|index| format!("pytorch_model-0000{index}-of-00009.bin")).collect();
    for (index, shard) in shards.iter().enumerate() {
        place.server.put_large(&format!("vision_tower/{shard}"), vec![index as u8; 5000]);
        place.server.answer(shard, Answer { cut: Some(100 * index), ..Answer::default() });
    }
    let pulled = place.pull().unwrap();
    for (index, shard) in shards.iter().enumerate() {
        assert_eq!(fs::read(pulled.snapshot.join("vision_tower").join(shard)).unwrap(), vec![index as u8; 5000]);
    }
}

#[test]
fn no_connections_at_a_time_are_one() {
    let place = Place::new();
    let pulled = place.pull_with(HubConfig { connections: 0, ..place.config() }).unwrap();
    place.assert_whole(&pulled);
}

#[test]
fn revisions_share_contents_and_leave_alone_what_the_other_shows() {
    let place = Place::new();
    let old = place.pull().unwrap();
    // A newer commit with other weights, as a later pull would have brought it.
    let (id, newer) = (model().id, "f".repeat(40));
    let config = Digest::from_hex("9e26dfeeb6e641a33dae4961196235bdb965b21b").unwrap();
    place.cache().link(&id, &newer, "config.json", &config).unwrap();
    place.cache().set_ref(&"org/name@next".parse().unwrap(), &newer).unwrap();

    let cached = place.cache().model(&id).unwrap();
    assert_eq!(cached.bytes, SIZE as u64 + 2);
    let refs: Vec<_> = cached.revisions.iter().map(|revision| (revision.bytes(), revision.refs.clone())).collect();
    assert_eq!(refs, [(SIZE as u64 + 2, vec!["main".to_owned()]), (2, vec!["next".to_owned()])]);

    let removal = place.cache().removal(&"org/name@main".parse().unwrap()).unwrap();
    assert_eq!((removal.bytes, removal.commits.as_slice()), (SIZE as u64, [COMMIT.to_owned()].as_slice()));
    assert!(place.blob().exists(), "nothing is removed before it is carried out");
    removal.carry_out().unwrap();
    assert!(!place.blob().exists() && !old.snapshot.exists());
    let left = place.cache().find(&"org/name@next".parse().unwrap()).unwrap();
    assert_eq!(fs::read(left.join("config.json")).unwrap(), b"{}");

    place.cache().removal(&"org/name@next".parse().unwrap()).unwrap().carry_out().unwrap();
    assert_eq!(place.cache().models().unwrap(), []);
    assert!(matches!(place.cache().removal(&model()), Err(HubError::NotCached { .. })));
}

/// As on Windows, where symbolic links take a right that few have.
#[test]
fn hard_links_are_as_good_as_symbolic_ones() {
    let place = Place::new();
    let snapshot = place.pull().unwrap().snapshot;
    let contents = [("config.json", place.blob().with_file_name("9e26dfeeb6e641a33dae4961196235bdb965b21b"))];
    for (name, content) in contents.into_iter().chain([(WEIGHTS, place.blob())]) {
        fs::remove_file(snapshot.join(name)).unwrap();
        fs::hard_link(content, snapshot.join(name)).unwrap();
    }
    place.assert_whole(&place.pull().unwrap());
    assert_eq!(fs::read_dir(&snapshot).unwrap().count(), 2, "they are left as they are");
    let cached = || place.cache().model(&model().id).unwrap();
    assert_eq!((cached().bytes, cached().revisions[0].bytes()), (SIZE as u64 + 2, SIZE as u64 + 2));
    assert!(cached().checks().iter().all(|check| check.run().unwrap() == State::Intact));

    fs::write(place.blob(), vec![0; SIZE]).unwrap();
    let damaged = cached().checks().into_iter().find(|check| check.run().unwrap() != State::Intact).unwrap();
    assert_eq!((&damaged.content, damaged.shown.as_slice()), (&place.blob(), &[snapshot.join(WEIGHTS)][..]));
    damaged.discard().unwrap();
    place.assert_whole(&place.pull().unwrap());

    let newer = "f".repeat(40);
    place.cache().link(&model().id, &newer, WEIGHTS, &sha256()).unwrap();
    let removal = place.cache().removal(&"org/name@main".parse().unwrap()).unwrap();
    assert_eq!(removal.bytes, 2, "the weights are the newer one's, too");
    removal.carry_out().unwrap();
    assert!(fs::read(place.cache().snapshot(&model().id, &newer).join(WEIGHTS)).unwrap() == weights());
}

/// Somebody has put a link to a file of their own into a snapshot, and one to a directory in the place of another.
#[cfg(unix)]
#[test]
fn what_links_lead_to_outside_of_the_cache_is_neither_counted_nor_removed() {
    let (place, outside) = (Place::new(), tempfile::tempdir().unwrap());
    let (id, snapshot) = (model().id, place.pull().unwrap().snapshot);
    let (photo, shown) = (outside.path().join(sha256().hex()), snapshot.join("photo"));
    fs::write(&photo, vec![0; 5000]).unwrap();
    std::os::unix::fs::symlink(&photo, &shown).unwrap();
    std::os::unix::fs::symlink(outside.path(), snapshot.with_file_name("f".repeat(40))).unwrap();

    let cached = place.cache().model(&id).unwrap();
    assert!((SIZE as u64..SIZE as u64 + 1000).contains(&cached.bytes), "{}", cached.bytes);
    assert_eq!(cached.revisions.iter().map(|revision| revision.files.len()).collect::<Vec<_>>(), [3, 0]);
    let checks = cached.checks();
    let check = checks.iter().find(|check| check.content == shown).unwrap();
    assert_eq!(check.run().unwrap(), State::Unknown);
    check.discard().unwrap();
    assert!(photo.exists() && fs::symlink_metadata(&shown).is_err());

    std::os::unix::fs::symlink(&photo, &shown).unwrap();
    place.cache().removal(&"org/name@main".parse().unwrap()).unwrap().carry_out().unwrap();
    assert!(!place.blob().exists() && !snapshot.exists());
    place.cache().removal(&model()).unwrap().carry_out().unwrap();
    assert_eq!(fs::read(&photo).unwrap().len(), 5000);
}

#[test]
fn a_model_that_is_being_downloaded_is_not_removed() {
    let place = Place::new();
    place.leave_partial(b"begun");
    let (_lock, _) = place.cache().try_lock(&model().id, &sha256()).unwrap();
    let error = place.cache().removal(&model()).unwrap_err();
    assert!(matches!(&error, HubError::InUse { path } if *path == place.partial()), "{error}");
}

#[test]
fn who_waits_for_a_model_that_is_removed_keeps_the_next_one_out() {
    let place = Place::new();
    place.leave_partial(b"begun");
    let removal = place.cache().removal(&model()).unwrap();
    let (waiting, taken) = place.cache().try_lock(&model().id, &sha256()).unwrap();
    assert!(!taken, "the removal holds the lock");
    removal.carry_out().unwrap();
    waiting.lock().unwrap();
    let (_next, taken) = place.cache().try_lock(&model().id, &sha256()).unwrap();
    assert!(!taken, "two would download the same content into the same file");
}

#[test]
fn verifying_finds_what_is_damaged_and_what_is_gone() {
    let place = Place::new();
    let snapshot = place.pull().unwrap().snapshot;
    let states = || {
        let checks = place.cache().model(&model().id).unwrap().checks();
        checks.iter().map(|check| (check.shown.clone(), check.run().unwrap())).collect::<Vec<_>>()
    };
    assert!(states().iter().all(|(_, state)| *state == State::Intact) && states().len() == 2);

    let mut damaged = weights();
    damaged[SIZE - 1] ^= 0x80;
    fs::write(place.blob(), damaged).unwrap();
    fs::remove_file(place.blob().with_file_name("9e26dfeeb6e641a33dae4961196235bdb965b21b")).unwrap();
    let state = |name| states().into_iter().find(|(shown, _)| *shown == [snapshot.join(name)]).unwrap().1;
    // A hard link is the content as much as the name that is gone, but says no digest.
    let is_link = snapshot.join("config.json").is_symlink();
    assert_eq!(state("config.json"), if is_link { State::Missing } else { State::Unknown });
    assert!(matches!(state(WEIGHTS), State::Damaged { expected, .. } if expected == sha256()));

    let checks = place.cache().model(&model().id).unwrap().checks();
    checks.iter().find(|check| check.content == place.blob()).unwrap().discard().unwrap();
    place.assert_whole(&place.pull().unwrap());
    assert!(states().iter().all(|(_, state)| *state == State::Intact));
}
