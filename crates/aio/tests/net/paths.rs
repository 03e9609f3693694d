//! Sockets in the file system: one owner a path.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::net::UnixListener;
use std::sync::Barrier;

use coblk_aio::net::remove_bound_paths;

use super::{bind, is_alone, is_served, names, place};

#[test]
fn only_a_socket_without_a_listener_is_replaced() {
    let (dir, path) = place();
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists() && !is_served(&path), "it is left over");
    let first = bind(&path).unwrap();
    assert!(is_served(&path));
    assert_eq!(bind(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
    assert!(is_served(&path), "the first one is still there");
    drop(first);
    assert_eq!(names(&dir), [""; 0], "neither socket nor lock is left");
}

#[test]
fn a_file_stays() {
    let (_dir, path) = place();
    fs::write(&path, "data").unwrap();
    assert_eq!(bind(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
    assert_eq!(fs::read(&path).unwrap(), b"data");
}

#[test]
fn a_listener_whose_queue_is_full_is_not_waited_for() {
    let (_dir, path) = place();
    let _stuck = bind(&path).unwrap();
    let mut clients = Vec::new();
    while let Ok(client) = mio::net::UnixStream::connect(&path) {
        clients.push(client);
    }
    assert_eq!(bind(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
}

#[test]
fn the_socket_of_a_successor_stays() {
    let (dir, path) = place();
    let first = bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let second = bind(&path).unwrap();
    drop(first);
    assert!(is_served(&path));
    drop(second);
    assert_eq!(names(&dir), [""; 0]);
}

#[test]
fn a_file_in_place_of_the_socket_stays() {
    let (_dir, path) = place();
    let listener = bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "data").unwrap();
    drop(listener);
    assert_eq!(fs::read(&path).unwrap(), b"data");
}

#[test]
fn one_of_many_that_start_at_once_gets_the_path() {
    const STARTERS: usize = 8;
    for round in 0..50 {
        let (dir, path) = place();
        if round % 2 == 0 {
            drop(UnixListener::bind(&path).unwrap());
        }
        let together = Barrier::new(STARTERS);
        let start = || {
            together.wait();
            bind(&path)
        };
        let started: Vec<_> = std::thread::scope(|scope| {
            let starters = [(); STARTERS].map(|()| scope.spawn(start));
            starters.into_iter().filter_map(|it| it.join().unwrap().ok()).collect()
        });
        assert_eq!(started.len(), 1, "round {round}");
        assert!(is_served(&path), "round {round}");
        drop(started);
        assert_eq!(names(&dir), [""; 0]);
    }
}

/// As a server does that is between two steps of its start or its end.
#[test]
fn a_path_that_another_is_about_to_bind_is_waited_for() {
    let (dir, path) = place();
    let lock = dir.path().join(".s.lock");
    let file = File::create(&lock).unwrap();
    file.lock().unwrap();
    let starter = std::thread::spawn({
        let path = path.clone();
        move || bind(&path)
    });
    // The other one binds, listens, and lets go.
    let other = UnixListener::bind(&path).unwrap();
    fs::remove_file(&lock).unwrap();
    drop(file);
    assert_eq!(starter.join().unwrap().unwrap_err().kind(), ErrorKind::AddrInUse);
    assert!(is_served(&path));
    drop(other);
}

#[test]
fn a_lock_that_a_dead_process_has_left_is_no_obstacle() {
    let (dir, path) = place();
    File::create(dir.path().join(".s.lock")).unwrap();
    drop(bind(&path).unwrap());
    assert_eq!(names(&dir), [""; 0]);
}

#[test]
fn a_file_with_the_name_of_the_lock_stays() {
    let (dir, path) = place();
    let lock = dir.path().join(".s.lock");
    fs::write(&lock, "data").unwrap();
    assert!(bind(&path).unwrap_err().to_string().contains(".s.lock is in the way"));
    assert_eq!(fs::read(&lock).unwrap(), b"data");
}

#[test]
fn a_bad_path_leaves_nothing_behind() {
    let (dir, path) = place();
    assert!(bind(&path.join("s")).is_err());
    assert!(bind(std::path::Path::new("")).is_err());
    assert!(bind(&dir.path().join("x".repeat(120))).is_err());
    assert_eq!(names(&dir), [""; 0]);
}

/// In a process of its own: it removes what every listener of the process has bound.
#[test]
fn a_process_that_ends_at_once_removes_its_own_sockets() {
    if !is_alone("paths::a_process_that_ends_at_once_removes_its_own_sockets", ":") {
        return;
    }
    let (dir, path) = place();
    let [other, file, gone] = ["t", "f", "g"].map(|name| dir.path().join(name));
    let own = [&path, &other, &file, &gone].map(|path| bind(path).unwrap());
    fs::remove_file(&other).unwrap();
    let _successor = UnixListener::bind(&other).unwrap();
    fs::remove_file(&file).unwrap();
    fs::write(&file, "data").unwrap();
    fs::remove_file(&gone).unwrap();
    drop(bind(&gone).unwrap());
    let _after_one_that_has_ended = UnixListener::bind(&gone).unwrap();
    remove_bound_paths();
    assert!(!path.exists(), "its listener goes on without it");
    assert!(is_served(&other) && is_served(&gone));
    assert_eq!(fs::read(&file).unwrap(), b"data");
    drop(own);
    assert!(is_served(&other) && is_served(&gone));
}
