//! The end of the ingress: what had begun is answered and stored, idle connections and new ones are not kept waiting,
//! and during the drain lag all goes on, with a hint to every sender that its connection ends.

use std::io::Write;
use std::net::{SocketAddr, TcpStream as StdStream};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::publish::{all_stored, counted, post, post_in_background, times, webhook};
use crate::support::http::{Client, request};
use crate::support::{Bridge, PATH, eventually, mock_cluster, settings, signed};

/// A lag long enough to act within it on a busy machine, and short enough to wait for.
const LAG: Duration = Duration::from_secs(2);

/// A connection made and written to without giving the runtime a moment: on a runtime of one thread the ingress then
/// knows nothing of it yet.
fn behind_its_back(address: SocketAddr, bytes: &[u8]) -> StdStream {
    let mut stream = StdStream::connect(address).expect("the system takes the connection");
    stream.write_all(bytes).expect("the system takes the bytes");
    stream
}

fn client(stream: StdStream) -> Client {
    stream.set_nonblocking(true).expect("a socket option");
    Client::over(TcpStream::from_std(stream).expect("a runtime is there"))
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_flight_are_answered() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), ""));
    assert_eq!(post(&bridge, &webhook("before", 0)).await.status, 200);
    assert_eq!(post(&bridge, &webhook("before", 100_000)).await.status, 200);
    let bodies: Vec<_> = (0..20).map(|n| webhook(&format!("n-{n}"), if n % 2 == 0 { 0 } else { 100_000 })).collect();
    cluster.broker_round_trip_time(1, Duration::from_millis(1500)).expect("there is a broker 1");
    let answers: Vec<_> = bodies.iter().map(|body| post_in_background(&bridge, body.clone())).collect();
    eventually("all are in flight", Duration::from_secs(20), || {
        bridge.metric("bridge_ingress_requests_in_flight", &[]) == 20.0
    })
    .await;
    bridge.shutdown.cancel();
    for answer in answers {
        let answer = answer.await.expect("no panic");
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    }
    assert_eq!(bridge.ended("acked"), 22.0);
    let address = bridge.address;
    bridge.stop().await;
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    cluster.broker_round_trip_time(1, Duration::ZERO).expect("there is a broker 1");
    let stored = all_stored(&cluster.bootstrap_servers(), 22);
    assert!(bodies.iter().all(|body| times(&stored, body) == 1), "each answered 200 is there, once");
}

#[tokio::test(flavor = "multi_thread")]
async fn during_the_lag_all_goes_on_and_then_idle_connections_end() {
    let cluster = mock_cluster(1);
    let mut config = settings(&cluster.bootstrap_servers(), "");
    config.shutdown.drain_lag = LAG;
    let bridge = Bridge::start(config);
    let body = webhook("lag", 0);
    let mut kept = Client::connect(bridge.address).await;
    let before = kept.post(PATH, &signed(&body), &body).await;
    assert_eq!((before.status, before.header("connection")), (200, None));
    let mut idle_after_one = Client::connect(bridge.address).await;
    assert_eq!(idle_after_one.post(PATH, &signed(&body), &body).await.status, 200);
    let mut idle_from_the_start = Client::connect(bridge.address).await;

    let begun = Instant::now();
    bridge.shutdown.cancel();
    // The ingress hears of it a moment later; an answer before that says nothing of closing.
    let (mut asked, mut kept_on) = (0.0, Some(kept));
    let closed = loop {
        let mut client = match kept_on.take() {
            Some(client) => client,
            None => Client::connect(bridge.address).await,
        };
        let answer = client.post(PATH, &signed(&body), &body).await;
        assert_eq!(answer.status, 200);
        asked += 1.0;
        if answer.header("connection") == Some("close") {
            break client.ended().await;
        }
        kept_on = Some(client);
    };
    assert!(closed, "after Connection: close comes the close");
    let fresh = post(&bridge, &body).await;
    assert_eq!((fresh.status, fresh.header("connection")), (200, Some("close")), "new connections are served");
    assert!(begun.elapsed() < LAG, "the machine is too slow for this test: {:?}", begun.elapsed());

    assert!(idle_after_one.ended().await && idle_from_the_start.ended().await);
    // Less a little: the clocks of the two sides are read at different moments.
    assert!(begun.elapsed() >= LAG - Duration::from_millis(50), "closed during the lag: {:?}", begun.elapsed());
    assert_eq!(bridge.ended("acked"), 3.0 + asked);
    let scraped_requests = bridge.metric("bridge_ingress_requests_total", &[]);
    assert_eq!(scraped_requests, 3.0 + asked);
    let address = bridge.address;
    bridge.stop().await;
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

/// What of a request the ingress has when the lag ends; the rest follows afterwards.
async fn check_begun(what: &str, known_to_the_ingress: bool, first: impl Fn(&[u8]) -> usize) {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), ""));
    let (before, body) = (webhook("before", 0), webhook("begun", 3000));
    // A connection that has served before, and one that is new.
    let mut used = Client::connect(bridge.address).await;
    assert_eq!(used.post(PATH, &signed(&before), &before).await.status, 200, "{what}");
    let used = used.into_stream().into_std().expect("a stream of the runtime");
    let new = behind_its_back(bridge.address, b"");
    // So that it is accepted, and known to be idle.
    eventually("accepted", Duration::from_secs(10), || bridge.metric("bridge_ingress_connections", &[]) == 2.0).await;

    let bytes = request(PATH, &signed(&body), &body);
    let cut = first(&bytes);
    let mut begun = Vec::new();
    for mut stream in [used, new] {
        stream.write_all(&bytes[..cut]).expect("the system takes the bytes");
        begun.push(stream);
    }
    if known_to_the_ingress {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bridge.shutdown.cancel();
    // Idle connections are gone by the time that nobody listens.
    let address = bridge.address;
    let listening = async || TcpStream::connect(address).await.is_ok();
    let deadline = Instant::now() + Duration::from_secs(10);
    while listening().await {
        assert!(Instant::now() < deadline, "{what}: still listening");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for stream in begun {
        let mut client = client(stream);
        client.send(&bytes[cut..]).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{what}");
    }
    assert_eq!(bridge.ended("acked"), 3.0, "{what}");
    bridge.stop().await;
    let stored = all_stored(&cluster.bootstrap_servers(), 3);
    assert_eq!(times(&stored, &body), 2, "{what}");
}

#[tokio::test]
async fn a_request_of_which_a_byte_has_come_is_answered() {
    let headers = |bytes: &[u8]| bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
    check_begun("one byte, not yet read", false, |_| 1).await;
    check_begun("one byte, read", true, |_| 1).await;
    check_begun("half of the headers, not yet read", false, |bytes| headers(bytes) / 2).await;
    check_begun("half of the headers, read", true, |bytes| headers(bytes) / 2).await;
    check_begun("all headers, not yet read", false, headers).await;
    check_begun("all headers, read", true, headers).await;
    check_begun("half of the body, not yet read", false, |bytes| bytes.len() - 1500).await;
    check_begun("half of the body, read", true, |bytes| bytes.len() - 1500).await;
}

/// A runtime of one thread that is busy until the lag is over: what comes meanwhile stays with the system.
async fn miss_the_end_of_the_lag(bridge: &Bridge, meanwhile: impl FnOnce()) {
    bridge.shutdown.cancel();
    // The lag begins once the ingress has been told.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let begun = Instant::now();
    meanwhile();
    assert!(begun.elapsed() < SHORT_LAG - Duration::from_millis(50), "the machine is too slow: {:?}", begun.elapsed());
    #[expect(
        clippy::disallowed_methods,
        reason = "the runtime's only thread is to be busy, which is what this is about"
    )]
    std::thread::sleep(SHORT_LAG);
}

/// What there is to do within it takes no time.
const SHORT_LAG: Duration = Duration::from_millis(700);

#[tokio::test]
async fn what_waits_in_the_listeners_queue_at_the_end_of_the_lag_is_served() {
    let cluster = mock_cluster(1);
    let mut config = settings(&cluster.bootstrap_servers(), "");
    config.shutdown.drain_lag = SHORT_LAG;
    let bridge = Bridge::start(config);
    assert_eq!(post(&bridge, &webhook("before", 0)).await.status, 200);
    // More than the accept loop takes in one turn (128), so that some are still in the queue when it is told to end.
    let bodies: Vec<_> = (0..200).map(|n| webhook(&format!("queued-{n}"), 0)).collect();
    let requests: Vec<_> = bodies.iter().map(|body| request(PATH, &signed(body), body)).collect();
    let (mut queued, mut silent) = (Vec::new(), Vec::new());
    miss_the_end_of_the_lag(&bridge, || {
        queued.extend(requests.iter().map(|bytes| behind_its_back(bridge.address, bytes)));
        silent.extend((0..5).map(|_| behind_its_back(bridge.address, b"")));
    })
    .await;
    for stream in queued {
        let answer = client(stream).answer().await;
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{:?}", answer.error());
    }
    for stream in silent {
        assert!(client(stream).ended().await, "who has sent nothing is closed without an answer");
    }
    assert_eq!(bridge.ended("acked"), 201.0);
    bridge.stop().await;
    let stored = all_stored(&cluster.bootstrap_servers(), 201);
    assert!(bodies.iter().all(|body| times(&stored, body) == 1), "each is there, once");
}

#[tokio::test]
async fn what_waits_on_a_connection_at_the_end_of_the_lag_is_answered() {
    let cluster = mock_cluster(1);
    let mut config = settings(&cluster.bootstrap_servers(), "");
    config.shutdown.drain_lag = SHORT_LAG;
    let bridge = Bridge::start(config);
    let body = webhook("waits", 0);
    let bytes = request(PATH, &signed(&body), &body);
    let mut streams: Vec<_> = (0..50).map(|_| behind_its_back(bridge.address, b"")).collect();
    eventually("accepted", Duration::from_secs(10), || bridge.metric("bridge_ingress_connections", &[]) == 50.0).await;
    // Idle for so long that they would be closed at once.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    // Some have sent everything, some one byte.
    let (whole, length) = (bytes.clone(), bytes.len());
    let part = move |n: usize| if n.is_multiple_of(2) { length } else { 1 };
    let mut latest = streams.split_off(25);
    // In the turn in which the lag ends, after the runtime has asked the system what is new.
    let writer = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        for (n, stream) in (25..).zip(&mut latest) {
            stream.write_all(&whole[..part(n)]).expect("the system takes the bytes");
        }
        latest
    });
    miss_the_end_of_the_lag(&bridge, || {
        for (n, stream) in streams.iter_mut().enumerate() {
            stream.write_all(&bytes[..part(n)]).expect("the system takes the bytes");
        }
    })
    .await;
    streams.extend(writer.await.expect("no panic"));
    for (n, stream) in streams.into_iter().enumerate() {
        let mut client = client(stream);
        client.send(&bytes[part(n)..]).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{n}: {:?}", answer.error());
    }
    assert_eq!(bridge.ended("acked"), 50.0);
    bridge.stop().await;
    assert_eq!(times(&all_stored(&cluster.bootstrap_servers(), 50), &body), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_senders_that_hung_up_are_stored_before_the_end() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), ""));
    assert_eq!(post(&bridge, &webhook("before", 0)).await.status, 200);
    cluster.broker_round_trip_time(1, Duration::from_millis(1500)).expect("there is a broker 1");
    let bodies: Vec<_> = (0..10).map(|n| webhook(&format!("gone-{n}"), 0)).collect();
    let before = bridge.metric("bridge_ingress_body_bytes_total", &[]) as usize;
    let mut senders = Vec::new();
    for body in &bodies {
        let mut sender = Client::connect(bridge.address).await;
        sender.send(request(PATH, &signed(body), body)).await;
        senders.push(sender);
    }
    let all: usize = bodies.iter().map(Vec::len).sum();
    eventually("all are handed over", Duration::from_secs(10), || {
        bridge.metric("bridge_ingress_body_bytes_total", &[]) as usize == before + all
    })
    .await;
    for mut sender in senders {
        let reset = socket2::SockRef::from(&*sender.stream()).set_linger(Some(Duration::ZERO));
        reset.expect("a socket option");
    }
    bridge.shutdown.cancel();
    eventually("each hang-up is counted", Duration::from_secs(20), || {
        bridge.metric("bridge_ingress_sender_gone_total", &[("outcome", "acked")]) == 10.0
    })
    .await;
    let ended = counted(&bridge);
    bridge.stop().await;
    cluster.broker_round_trip_time(1, Duration::ZERO).expect("there is a broker 1");
    let stored = all_stored(&cluster.bootstrap_servers(), 11);
    assert!(bodies.iter().all(|body| times(&stored, body) == 1), "{ended:?}");
}
