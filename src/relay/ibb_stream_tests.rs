//! In-band bytestreams as legs: carried by handles, relayed, slowed down and cut.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use fingerpost_carry::{
    ibb_handle::IbbHandle,
    ibb_memory::IbbMemory,
    ibb_params::IbbParams,
    ibb_stream::IbbStream,
    outbound::QueuedStanza,
    shares::{Limits, Permits},
    tcp,
};
use fingerpost_wire::{
    ibb::IbbError,
    ibb_xml::{IbbPayload, IbbStanza},
    ns,
    stanza::{Kind, Refusal, Stanza, StanzaType},
};
use jid::Jid;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    sync::mpsc,
};

use crate::relay::{join::join, pipe, plane::Plane, socket::SocketLeg, watch::StreamProgress};

fn jid(text: &str) -> Jid {
    Jid::new(text).unwrap()
}

fn params() -> IbbParams {
    IbbParams::new(jid("romeo@montague.lit/o"), jid("juliet@capulet.lit/b"), "s")
}

fn swapped(params: &IbbParams) -> IbbParams {
    let (peer, local) = (*params.ends).clone();
    IbbParams { ends: Arc::new((local, peer)), ..params.clone() }
}

fn is_ping(stanza: &Stanza) -> bool {
    stanza.payload().is_some_and(|payload| payload.is("ping", ns::PING))
}

/// Carries stanzas to a handle, as the servers and the router would, and answers pings for it.
fn carry(mut from: mpsc::Receiver<QueuedStanza>, to: IbbHandle, back: IbbHandle) {
    tokio::spawn(async move {
        while let Some(element) = from.recv().await {
            let stanza = Stanza::parse(element.into_element()).unwrap();
            if is_ping(&stanza) {
                back.handle(&Stanza::parse(stanza.result(None)).unwrap());
            } else {
                assert!(to.handle(&stanza), "{stanza:?}");
            }
        }
    });
}

/// Two connected streams over queues of the given size.
fn pair(params: &IbbParams, queue: usize) -> (IbbStream, IbbStream, [IbbHandle; 2]) {
    let (to_juliet, from_romeo) = mpsc::channel(queue);
    let (to_romeo, from_juliet) = mpsc::channel(queue);
    let (romeo, romeos) = IbbStream::new(params.clone(), to_juliet);
    let (juliet, juliets) = IbbStream::new(swapped(params), to_romeo);
    carry(from_romeo, juliets.clone(), romeos.clone());
    carry(from_juliet, romeos.clone(), juliets.clone());
    (romeo, juliet, [romeos, juliets])
}

/// [`carry`], which counts the blocks' bytes.
fn carry_counting(mut from: mpsc::Receiver<QueuedStanza>, to: IbbHandle) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Some(element) = from.recv().await {
            let stanza = Stanza::parse(element.into_element()).unwrap();
            let data = stanza.element.get_child("data", ns::IBB).map(|data| data.text().len());
            counted.fetch_add(data.unwrap_or_default() / 4 * 3, Ordering::Relaxed);
            assert!(to.handle(&stanza) || is_ping(&stanza), "{stanza:?}");
        }
    });
    count
}

/// The limits of memory for tests: all of it is for one user.
fn permits(bytes: usize) -> Permits {
    Permits::new(Limits::new(bytes, bytes, 1_000_000))
}

fn sharing(
    params: IbbParams,
    outbound: mpsc::Sender<QueuedStanza>,
    permits: &Permits,
) -> (IbbStream, IbbHandle) {
    let user = params.ends.0.to_bare();
    let memory = IbbMemory::reserve(permits, &user, params.block_size).unwrap();
    IbbStream::sharing(params, outbound, memory)
}

/// Two users write without end and never read; between them is the component's part of a session, with more or less
/// memory.
#[tokio::test(start_paused = true)]
async fn a_session_that_stands_still_both_ways_holds_no_more_than_its_memory() {
    for (block_size, bytes) in
        [(1000, 8192), (4096, 100_000), (8192, 1 << 20), (8192, 64 << 20), (65_535, 131_070)]
    {
        let permits = permits(bytes);
        let params =
            IbbParams { block_size, silence_timeout: Duration::from_secs(6000), ..params() };
        let mut users = Vec::new();
        let mut legs = Vec::new();
        let mut counts = Vec::new();
        for _ in 0..2 {
            let (to_leg, from_user) = mpsc::channel(4);
            let (to_user, from_leg) = mpsc::channel(4);
            let (user, users_handle) = IbbStream::new(params.clone(), to_leg);
            let (leg, legs_handle) = sharing(swapped(&params), to_user, &permits);
            counts.push((
                carry_counting(from_user, legs_handle),
                carry_counting(from_leg, users_handle),
            ));
            users.push(user);
            legs.push(leg);
        }
        let b = legs.pop().unwrap();
        let relay =
            tokio::spawn(pipe::relay(legs.pop().unwrap(), b, pipe::StreamOptions::default()));
        let writers: Vec<_> = users
            .into_iter()
            .map(|mut user| {
                tokio::spawn(async move { while user.write_all(&[7; 65_535]).await.is_ok() {} })
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let [one, other] = [0, 1].map(|from| {
            let (sent, arrived) = (&counts[from].0, &counts[1 - from].1);
            sent.load(Ordering::Relaxed) - arrived.load(Ordering::Relaxed)
        });
        // The pipe has buffers of its own.
        let most = bytes + 2 * 32 * 1024;
        assert!(one + other <= most, "{block_size} of {bytes}: {one} and {other}");
        assert!(permits.taken() <= bytes);
        assert!(one.min(other) >= 2 * 1024, "{block_size}: it does hold something: {one}, {other}");
        assert!(!relay.is_finished() && !writers.iter().any(|writer| writer.is_finished()));
    }
}

#[tokio::test]
async fn a_block_that_is_longer_than_agreed_takes_no_memory() {
    let permits = permits(64 << 20);
    let (outbound, mut sent) = mpsc::channel(4);
    let params = IbbParams { block_size: 1024, ..params() };
    let (_stream, handle) = sharing(params, outbound, &permits);
    let before = permits.taken();
    handle.handle_block("1", 0, &"A".repeat(900_000));
    assert_eq!(permits.taken(), before);
    let refusal = sent.recv().await.unwrap().into_element();
    assert_eq!(refusal.attr("type"), Some("error"));
}

/// Much goes through a session that gets no memory beyond one block, and through one that gets all it wants. Afterwards
/// all memory is free.
#[tokio::test(start_paused = true)]
async fn a_session_goes_on_with_little_memory() {
    for bytes in [16_384, 64 << 20] {
        let permits = permits(bytes);
        let (params, mut ends, mut legs) = (params(), Vec::new(), Vec::new());
        for _ in 0..2 {
            let (to_leg, from_user) = mpsc::channel(4);
            let (to_user, from_leg) = mpsc::channel(4);
            let (user, users) = IbbStream::new(params.clone(), to_leg);
            let (leg, handle) = sharing(swapped(&params), to_user, &permits);
            carry(from_user, handle.clone(), users.clone());
            carry(from_leg, users, handle);
            ends.push(user);
            legs.push(leg);
        }
        let b = legs.pop().unwrap();
        let relay =
            tokio::spawn(pipe::relay(legs.pop().unwrap(), b, pipe::StreamOptions::default()));
        let (mut juliet, mut romeo) = (ends.pop().unwrap(), ends.pop().unwrap());
        let data = pattern(500_000);
        let writer = tokio::spawn({
            let data = data.clone();
            async move {
                romeo.write_all(&data).await.unwrap();
                romeo
            }
        });
        let mut got = vec![0; data.len()];
        juliet.read_exact(&mut got).await.unwrap();
        assert!(got == data);
        drop((writer.await.unwrap(), juliet));
        relay.await.unwrap();
        assert_eq!(permits.taken(), 0);
    }
}

fn pattern(n: u32) -> Vec<u8> {
    (0..n).flat_map(u32::to_le_bytes).collect()
}

/// Returns a stanza of Juliet's.
fn from_juliet(xml: &str) -> Stanza {
    let xml = xml.replacen(
        ' ',
        " xmlns='jabber:client' from='juliet@capulet.lit/b' to='romeo@montague.lit/o' ",
        1,
    );
    Stanza::parse(xml.replace("IBB", ns::IBB).parse().unwrap()).unwrap()
}

#[tokio::test]
async fn much_goes_both_ways_at_once() {
    for (stanza, queue, block_size) in
        [(IbbStanza::Iq, 1, 999), (IbbStanza::Iq, 64, 8192), (IbbStanza::Message, 4, 8192)]
    {
        let params = IbbParams { stanza, block_size, ..params() };
        let (romeo, juliet, _handles) = pair(&params, queue);
        let data = pattern(50_000);
        let user = |stream: IbbStream| {
            let data = data.clone();
            tokio::spawn(async move {
                let (mut r, mut w) = tokio::io::split(stream);
                let writer = tokio::spawn({
                    let data = data.clone();
                    async move {
                        w.write_all(&data).await.unwrap();
                        w
                    }
                });
                let mut got = vec![0; data.len()];
                r.read_exact(&mut got).await.unwrap();
                assert!(got == data);
                (r, writer.await.unwrap())
            })
        };
        let (romeo, juliet) = (user(romeo), user(juliet));
        let _ = (romeo.await.unwrap(), juliet.await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn half_close_carries_the_last_byte() {
    let (mut romeo, mut juliet, handles) = pair(&params(), 8);
    romeo.write_all(b"last").await.unwrap();
    romeo.shutdown().await.unwrap();
    let mut got = [0; 4];
    juliet.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"last");
    let reader = tokio::spawn(async move {
        let mut got = Vec::new();
        romeo.read_to_end(&mut got).await.unwrap();
        got
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    juliet.write_all(b"the reverse").await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    juliet.write_all(b" goes on").await.unwrap();
    // Romeo hears nothing more and closes.
    assert_eq!(juliet.read(&mut got).await.unwrap(), 0);
    assert_eq!(reader.await.unwrap(), b"the reverse goes on");
    assert_eq!(juliet.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    drop(juliet);
    assert!(handles.iter().all(IbbHandle::is_over));
}

#[tokio::test]
async fn a_slow_reader_slows_the_writer() {
    let (mut romeo, mut juliet, _handles) = pair(&params(), 1024);
    let data = pattern(250_000);
    let written = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let writer = tokio::spawn({
        let (data, written) = (data.clone(), Arc::clone(&written));
        async move {
            for chunk in data.chunks(8192) {
                romeo.write_all(chunk).await.unwrap();
                written.fetch_add(chunk.len(), std::sync::atomic::Ordering::Relaxed);
            }
            romeo.shutdown().await.unwrap();
            romeo
        }
    });
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let ahead = written.load(std::sync::atomic::Ordering::Relaxed);
    // What is acknowledged at once, and the window to which that has let it grow.
    assert!((16 * 1024..=96 * 1024).contains(&ahead), "{ahead}");
    let mut got = vec![0; data.len()];
    juliet.read_exact(&mut got).await.unwrap();
    assert!(got == data);
    drop(writer.await.unwrap());
    assert_eq!(juliet.read(&mut got).await.unwrap(), 0);
}

#[tokio::test]
async fn stanzas_are_complete() {
    let (outbound, mut sent) = mpsc::channel(8);
    let (mut romeo, handle) = IbbStream::new(params(), outbound);
    romeo.write_all(b"x").await.unwrap();
    let block = Stanza::parse(sent.recv().await.unwrap().into_element()).unwrap();
    assert_eq!((block.kind, block.type_), (Kind::Iq, StanzaType::Set));
    assert_eq!((&block.from, &block.to), (handle.local(), handle.peer()));
    assert_eq!(
        IbbPayload::parse(block.payload().unwrap()),
        Ok(Some(IbbPayload::Data { sid: "s".to_owned(), seq: 0, text: "eA==".to_owned() }))
    );
    assert!(handle.handle(&from_juliet(&format!("<iq type='result' id='{}'/>", block.id))));
    let number = block.id.strip_suffix('0').unwrap();
    for other in ["1", "8000", "ffffffffffffffff", "10000000000000000", "-1", "", "x"] {
        let result = format!("<iq type='result' id='{number}{other}'/>");
        assert!(!handle.handle(&from_juliet(&result)), "there is no such block");
    }
    assert!(handle.handle(&from_juliet(
        "<iq type='set' id='a'><data xmlns='IBB' sid='s' seq='0'>eA==</data></iq>"
    )));
    let ack = Stanza::parse(sent.recv().await.unwrap().into_element()).unwrap();
    assert_eq!((ack.type_, ack.id.as_str()), (StanzaType::Result, "a"));
    assert_eq!(romeo.read_u8().await.unwrap(), b'x');
    drop(romeo);
    let close = Stanza::parse(sent.recv().await.unwrap().into_element()).unwrap();
    assert!(close.payload().unwrap().is("close", ns::IBB));
    assert!(!handle.is_over());
    assert!(handle.handle(&from_juliet(&format!("<iq type='error' id='{}'/>", close.id))));
    assert!(handle.is_over());
}

#[tokio::test]
async fn what_belongs_to_others_is_left_alone() {
    let (outbound, _sent) = mpsc::channel(8);
    let (_romeo, handle) = IbbStream::new(params(), outbound);
    for xml in [
        "<iq type='set' id='a'><data xmlns='IBB' sid='other' seq='0'>eA==</data></iq>",
        "<iq type='get' id='a'><data xmlns='IBB' sid='s' seq='0'>eA==</data></iq>",
        "<iq type='set' id='a'><open xmlns='IBB' sid='s' block-size='1'/></iq>",
        "<iq type='set' id='a'><close xmlns='other' sid='s'/></iq>",
        "<iq type='result' id='a'/>",
        "<presence />",
    ] {
        assert!(!handle.handle(&from_juliet(xml)), "{xml}");
    }
    let mut stranger = from_juliet("<iq type='set' id='a'><close xmlns='IBB' sid='s'/></iq>");
    stranger.from = jid("tybalt@capulet.lit/b");
    assert!(!handle.handle(&stranger));
}

/// Returns whether a queued stanza has such a child of in-band bytestreams.
fn carries(queued: Option<QueuedStanza>, name: &str) -> bool {
    queued.unwrap().into_element().children().any(|child| child.is(name, ns::IBB))
}

#[tokio::test]
async fn a_malformed_block_ends_the_stream() {
    let (outbound, mut sent) = mpsc::channel(8);
    let (mut romeo, handle) = IbbStream::new(params(), outbound);
    assert!(
        handle.handle(&from_juliet(
            "<iq type='set' id='a'><data xmlns='IBB' sid='s'>eA==</data></iq>"
        ))
    );
    let refusal = Stanza::parse(sent.recv().await.unwrap().into_element()).unwrap();
    assert_eq!((refusal.type_, refusal.id.as_str()), (StanzaType::Error, "a"));
    assert!(carries(sent.recv().await, "close"));
    assert_eq!(romeo.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[tokio::test]
async fn a_bounced_message_is_no_data() {
    let (outbound, _sent) = mpsc::channel(8);
    let (mut romeo, handle) = IbbStream::new(params(), outbound);
    assert!(handle.handle(&from_juliet(
        "<message type='error' id='a'><data xmlns='IBB' sid='s' seq='0'>eA==</data></message>"
    )));
    assert_eq!(romeo.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

/// Some servers return a message without what was in it.
#[tokio::test]
async fn a_bounced_message_is_known_by_its_id() {
    let (outbound, mut sent) = mpsc::channel(8);
    let params = IbbParams { stanza: IbbStanza::Message, ..params() };
    let (mut romeo, handle) = IbbStream::new(params, outbound);
    romeo.write_all(b"x").await.unwrap();
    let block = Stanza::parse(sent.recv().await.unwrap().into_element()).unwrap();
    let bounce = |id: &str| {
        from_juliet(&format!(
            "<message type='error' id='{id}'><error type='cancel'>\
             <not-allowed xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></message>"
        ))
    };
    for other in ["", "a", "ibb0"] {
        assert!(!handle.handle(&bounce(other)));
    }
    assert_eq!(handle.failure(), None);
    assert!(handle.handle(&bounce(&block.id)));
    assert_eq!(handle.failure(), Some(IbbError::Refused));
}

/// A user that lets every block come back costs little: the router's lock is held meanwhile.
#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_pings_and_refuses_blocks_is_given_up() {
    let (outbound, mut sent) = mpsc::channel(64);
    let (mut romeo, handle) = IbbStream::new(params(), outbound);
    let peer = tokio::spawn(async move {
        let (mut pings, mut blocks) = (0, 0);
        while let Some(element) = sent.recv().await {
            let stanza = Stanza::parse(element.into_element()).unwrap();
            let answer = match stanza.payload().unwrap() {
                payload if payload.is("close", ns::IBB) => return (pings, blocks),
                payload if payload.is("ping", ns::PING) => {
                    pings += 1;
                    stanza.result(None)
                }
                _ => {
                    blocks += 1;
                    stanza.refusal(&Refusal::service_unavailable())
                }
            };
            handle.handle(&Stanza::parse(answer).unwrap());
        }
        panic!("no close");
    });
    while romeo.write_all(&[7; 8192]).await.is_ok() {}
    let (pings, blocks) = peer.await.unwrap();
    assert!(pings <= 4 && (4..=16 + 3).contains(&blocks), "{pings}, {blocks}");
    assert_eq!(romeo.read(&mut [0]).await.unwrap_err().to_string(), IbbError::Missing.to_string());
}

#[tokio::test(start_paused = true)]
async fn silence_of_the_peer_ends_the_stream() {
    let (outbound, _sent) = mpsc::channel(64);
    let (mut romeo, _handle) = IbbStream::new(params(), outbound);
    romeo.write_all(b"x").await.unwrap();
    let begin = tokio::time::Instant::now();
    assert_eq!(romeo.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!(begin.elapsed().as_secs(), 300);
    assert_eq!(romeo.write(b"x").await.unwrap_err().kind(), io::ErrorKind::TimedOut);
}

#[tokio::test(start_paused = true)]
async fn waiting_does_not_spin() {
    let (outbound, mut sent) = mpsc::channel(2);
    let (mut romeo, handle) = IbbStream::new(params(), outbound);
    romeo.write_all(b"xy").await.unwrap();
    let waiting = tokio::spawn(async move {
        let (mut polls, mut buffer) = (0, [0; 8]);
        let read = std::future::poll_fn(|cx| {
            polls += 1;
            let shut = Pin::new(&mut romeo).poll_shutdown(cx).is_ready();
            let read = Pin::new(&mut romeo).poll_read(cx, &mut ReadBuf::new(&mut buffer));
            if shut { read } else { Poll::Pending }
        });
        read.await.unwrap();
        polls
    });
    let block = Stanza::parse(sent.recv().await.unwrap().into_element()).unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(handle.handle(&from_juliet(&format!("<iq type='result' id='{}'/>", block.id))));
    let close = loop {
        let stanza = Stanza::parse(sent.recv().await.unwrap().into_element()).unwrap();
        if stanza.payload().unwrap().is("close", ns::IBB) {
            break stanza;
        }
    };
    assert!(handle.handle(&from_juliet(&format!("<iq type='result' id='{}'/>", close.id))));
    assert!(waiting.await.unwrap() < 20);
}

#[tokio::test]
async fn answers_wait_for_room_in_the_queue() {
    let (outbound, mut sent) = mpsc::channel(1);
    let (mut romeo, handle) = IbbStream::new(params(), outbound);
    for seq in 0..5 {
        assert!(handle.handle(&from_juliet(&format!(
            "<iq type='set' id='{seq}'><data xmlns='IBB' sid='s' seq='{seq}'>eA==</data></iq>"
        ))));
    }
    assert!(handle.handle(&from_juliet("<iq type='set' id='5'><close xmlns='IBB' sid='s'/></iq>")));
    let reader = tokio::spawn(async move {
        let mut got = Vec::new();
        romeo.read_to_end(&mut got).await.unwrap();
        romeo.flush().await.unwrap();
        got
    });
    for expected in 0..6 {
        let answer = Stanza::parse(sent.recv().await.unwrap().into_element()).unwrap();
        assert_eq!((answer.type_, answer.id), (StanzaType::Result, expected.to_string()));
    }
    assert_eq!(reader.await.unwrap(), b"xxxxx");
}

/// The component's link writes everything that is in its queue at once.
#[tokio::test]
async fn a_reader_of_the_component_sends_the_acknowledgement_with_what_it_passes_on() {
    let (outbound, mut sent) = mpsc::channel(8);
    let permits = permits(1 << 20);
    let (mut romeo, handle) = sharing(params(), outbound, &permits);
    // Nobody reads yet, so nothing waits for a reader.
    handle.handle_block("0", 0, "eA==");
    assert!(sent.try_recv().is_ok());
    let mut byte = [0; 8];
    assert_eq!(romeo.read(&mut byte).await.unwrap(), 1);
    let reader = tokio::spawn(async move {
        let mut byte = [0; 8];
        assert_eq!(romeo.read(&mut byte).await.unwrap(), 1);
        romeo
    });
    tokio::task::yield_now().await;
    handle.handle_block("1", 1, "eA==");
    assert!(sent.try_recv().is_err(), "the reader has not run");
    let mut romeo = reader.await.unwrap();
    let answer = Stanza::parse(sent.recv().await.unwrap().into_element()).unwrap();
    assert_eq!((answer.type_, answer.id.as_str()), (StanzaType::Result, "1"));
    // A reader that is gone answers nothing.
    let waiting = romeo.read(&mut byte);
    assert!(tokio::time::timeout(Duration::ZERO, waiting).await.is_err());
    drop(romeo);
    assert!(carries(sent.recv().await, "close"));
    handle.handle_block("2", 2, "eA==");
    let answer = Stanza::parse(sent.recv().await.unwrap().into_element()).unwrap();
    assert_eq!((answer.type_, answer.id.as_str()), (StanzaType::Error, "2"));
}

#[tokio::test]
async fn a_flush_sends_what_waits_for_the_rest_of_its_block() {
    let (outbound, mut sent) = mpsc::channel(8);
    let (mut romeo, handle) = IbbStream::new(params(), outbound);
    romeo.write_all(b"a").await.unwrap();
    assert!(carries(sent.recv().await, "data"));
    romeo.write_all(b"b").await.unwrap();
    romeo.write_all(b"c").await.unwrap();
    assert!(sent.try_recv().is_err(), "the first block is on its way");
    romeo.flush().await.unwrap();
    let stanza = Stanza::parse(sent.recv().await.unwrap().into_element()).unwrap();
    let Ok(Some(IbbPayload::Data { seq, text, .. })) = IbbPayload::parse(stanza.payload().unwrap())
    else {
        panic!("{stanza:?}");
    };
    assert_eq!((seq, text.as_str()), (1, "YmM="));
    drop(handle);
}

#[tokio::test]
async fn the_close_of_a_dropped_stream_waits_for_room() {
    let (outbound, mut sent) = mpsc::channel(1);
    let (mut romeo, _handle) = IbbStream::new(params(), outbound);
    romeo.write_all(b"x").await.unwrap();
    drop(romeo);
    assert!(carries(sent.recv().await, "data"));
    assert!(carries(sent.recv().await, "close"));
}

#[tokio::test]
async fn nothing_is_sent_before_the_stream_is_open() {
    let (outbound, mut sent) = mpsc::channel(8);
    let (mut romeo, handle) = IbbStream::new(IbbParams { opened: false, ..params() }, outbound);
    let writer = tokio::spawn(async move {
        romeo.write_all(b"x").await.unwrap();
        romeo
    });
    tokio::task::yield_now().await;
    assert!(sent.try_recv().is_err());
    handle.handle_opened(true);
    let _romeo = writer.await.unwrap();
    assert!(sent.recv().await.is_some());
}

#[tokio::test]
async fn any_mix_of_legs_carries_the_stream() {
    let ibb = || {
        let close_linger = Duration::from_secs(2);
        let (near, far, handles) = pair(&IbbParams { close_linger, ..params() }, 16);
        (SocketLeg::Ibb(near), SocketLeg::Ibb(far), Some(handles))
    };
    for (ibb_in, ibb_out) in [(false, false), (false, true), (true, false), (true, true)] {
        let tcp_in = tcp_pair().await;
        let tcp_out = tcp_pair().await;
        let (mut romeo, a, _keep) = if ibb_in { ibb() } else { tcp_in };
        let (mut juliet, b, _keep) = if ibb_out { ibb() } else { tcp_out };
        let pipe = tokio::spawn(pipe::relay(a, b, pipe::StreamOptions::default()));
        let data = pattern(60_000);
        let sent = data.clone();
        let writer = tokio::spawn(async move {
            romeo.write_all(&sent).await.unwrap();
            romeo.shutdown().await.unwrap();
            let mut answer = Vec::new();
            romeo.read_to_end(&mut answer).await.unwrap();
            answer
        });
        let mut got = vec![0; data.len()];
        juliet.read_exact(&mut got).await.unwrap();
        assert!(got == data);
        juliet.write_all(b"thanks").await.unwrap();
        juliet.shutdown().await.unwrap();
        drop(juliet);
        assert_eq!(writer.await.unwrap(), b"thanks", "{ibb_in} {ibb_out}");
        let outcome = pipe.await.unwrap();
        assert_eq!((outcome.a_to_b, outcome.b_to_a), (240_000, 6));
    }
}

async fn tcp_pair() -> (SocketLeg, SocketLeg, Option<[IbbHandle; 2]>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (far, _) = listener.accept().await.unwrap();
    (SocketLeg::Socket(Box::new(near.into())), SocketLeg::Socket(Box::new(far.into())), None)
}

/// Returns a stream between a socket and an in-band leg, run as sessions are; and both users.
async fn mixed(ibb_first: bool) -> (tokio::net::TcpStream, IbbStream, [IbbHandle; 2], Relay) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let user = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let socket = SocketLeg::Socket(Box::new(listener.accept().await.unwrap().0.into()));
    let close_linger = Duration::from_millis(50);
    let (juliet, near, handles) = pair(&IbbParams { close_linger, ..params() }, 16);
    let (a, b) =
        if ibb_first { (SocketLeg::Ibb(near), socket) } else { (socket, SocketLeg::Ibb(near)) };
    let relay = tokio::spawn(async move {
        let (plane, progress) = (Plane::new(0), StreamProgress::default());
        join(plane.clone(), a, b, pipe::StreamOptions::default(), &progress).await
    });
    (user, juliet, handles, relay)
}

type Relay = tokio::task::JoinHandle<pipe::StreamOutcome>;

fn is_reset(end: &io::Result<usize>) -> bool {
    matches!(end, Err(error) if error.kind() == io::ErrorKind::ConnectionReset)
}

#[tokio::test]
async fn a_socket_that_is_reset_becomes_a_close_after_its_last_byte() {
    for ibb_first in [false, true] {
        let (mut romeo, mut juliet, _handles, relay) = mixed(ibb_first).await;
        let sent = pattern(50_000);
        let socket = socket2::SockRef::from(&romeo);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        let writes = async {
            romeo.write_all(&sent).await.unwrap();
            while !tcp::info(&romeo).unwrap().is_delivered() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop(romeo);
        };
        let mut got = Vec::new();
        // She writes too, but nothing takes it any longer.
        let (mut reader, mut writer) = tokio::io::split(&mut juliet);
        let reads = async {
            reader.read_to_end(&mut got).await.unwrap();
        };
        let talks = async {
            let _ = writer.write_all(&[7; 300_000]).await;
        };
        tokio::join!(writes, reads, talks);
        assert!(got == sent, "{} of {}", got.len(), sent.len());
        let end = relay.await.unwrap().end;
        assert!(matches!(end, pipe::Ended::Error(_)), "the session ends with a reason: {end:?}");
    }
}

#[tokio::test]
async fn an_in_band_leg_that_fails_resets_the_socket_after_its_last_byte() {
    for ibb_first in [false, true] {
        let (mut romeo, mut juliet, [_, handle], relay) = mixed(ibb_first).await;
        let sent = pattern(100_000);
        let (reader, writer) = tokio::join!(
            async {
                let mut got = vec![0; sent.len()];
                romeo.read_exact(&mut got).await.unwrap();
                got
            },
            juliet.write_all(&sent)
        );
        writer.unwrap();
        assert!(reader == sent);
        juliet.write_all(b"last").await.unwrap();
        juliet.flush().await.unwrap();
        // The connection to the server is gone.
        let mut last = [0; 4];
        romeo.read_exact(&mut last).await.unwrap();
        handle.handle_lost();
        let mut rest = Vec::new();
        assert!(is_reset(&romeo.read_to_end(&mut rest).await), "{rest:?}");
        assert!(matches!(relay.await.unwrap().end, pipe::Ended::Error(_)));
        drop(juliet);
    }
}

#[tokio::test]
async fn a_socket_whose_session_is_cut_is_reset() {
    for ibb_first in [false, true] {
        let (mut romeo, mut juliet, _handles, relay) = mixed(ibb_first).await;
        juliet.write_all(b"part").await.unwrap();
        romeo.read_exact(&mut [0; 4]).await.unwrap();
        relay.abort();
        assert!(relay.await.is_err());
        assert!(is_reset(&romeo.read_to_end(&mut Vec::new()).await));
    }
}

#[tokio::test]
async fn the_guard_takes_a_hello_in_records_of_one_byte_over_in_band_blocks() {
    let (mut romeo, near, _handles) = pair(&params(), 16);
    let (mut juliet, b, _) = tcp_pair().await;
    let options = pipe::StreamOptions {
        guard: Some(pipe::FirstBytes::ClientHello),
        ..pipe::StreamOptions::default()
    };
    let relay = tokio::spawn(pipe::relay(SocketLeg::Ibb(near), b, options));
    let mut hello = Vec::new();
    for byte in [1, 0, 1, 0xfc, 3, 3, 7] {
        hello.extend([0x16, 3, 1, 0, 1, byte]);
    }
    let writes = async {
        for byte in &hello {
            romeo.write_all(&[*byte]).await.unwrap();
        }
        romeo.flush().await.unwrap();
    };
    let mut got = vec![0; hello.len()];
    let (_, read) = tokio::join!(writes, juliet.read_exact(&mut got));
    read.unwrap();
    assert_eq!(got, hello);
    relay.abort();

    let (mut romeo, near, _handles) = pair(&params(), 16);
    let (mut juliet, b, _) = tcp_pair().await;
    let relay = tokio::spawn(pipe::relay(SocketLeg::Ibb(near), b, options));
    romeo.write_all(&[0x16, 3, 1, 0, 1, 1, 0x16, 3, 1, 0, 0]).await.unwrap();
    assert_eq!(relay.await.unwrap().end, pipe::Ended::NotTls);
    let mut leaked = Vec::new();
    let _ = juliet.read_to_end(&mut leaked).await;
    assert!(leaked.is_empty());
}

/// A sender by message that never waits, and a late reader: what there is room for arrives, and the room is given back.
#[tokio::test(start_paused = true)]
async fn ten_megabytes_by_message_arrive_and_their_room_is_free_again() {
    let memory = Permits::new(Limits::new(64 << 20, 16 << 20, 4));
    let (outbound, _sent) = mpsc::channel(4);
    let params = params();
    let (mut stream, handle) = sharing(params.clone(), outbound, &memory);
    let block = [7_u8; 8192];
    let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, block);
    let message = |seq: usize| {
        let xml = format!(
            "<message xmlns='jabber:client' from='{}' to='{}'>\
             <data xmlns='http://jabber.org/protocol/ibb' sid='s' seq='{seq}'>{text}</data></message>",
            params.ends.0, params.ends.1
        );
        Stanza::parse(xml.parse().unwrap()).unwrap()
    };
    for seq in 0..1280 {
        assert!(handle.handle(&message(seq)));
    }
    assert!(memory.taken() >= 10 << 20 && memory.taken() <= 16 << 20, "{}", memory.taken());
    let mut read = vec![0; 1280 * 8192];
    stream.read_exact(&mut read).await.unwrap();
    let nothing = tokio::time::timeout(Duration::from_secs(3), stream.read(&mut [0])).await;
    assert!(nothing.is_err());
    assert_eq!(memory.taken(), 8192, "what each stream always has");
    // Beyond one user's share the stream ends; it takes no room that others need.
    for seq in 1280..4000 {
        handle.handle(&message(seq));
    }
    let mut rest = Vec::new();
    let error = stream.read_to_end(&mut rest).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(rest.len() >= 15 << 20, "{}", rest.len());
    drop(stream);
    assert_eq!(memory.taken(), 0);
}

/// The room that slow readers hold for blocks by message is bounded for all streams together, and each user has a
/// share.
#[tokio::test(start_paused = true)]
async fn what_blocks_by_message_hold_is_bounded_for_all_users_together() {
    let total = 4 << 20;
    let memory = Permits::new(Limits::new(total, total / 4, 4));
    let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [7_u8; 8192]);
    let (outbound, mut sent) = mpsc::channel(4);
    tokio::spawn(async move { while sent.recv().await.is_some() {} });
    let (mut streams, mut refused) = (Vec::new(), 0);
    for n in 0..20 {
        let peer = jid(&format!("u{n}@d{n}.example/x"));
        let params = IbbParams { ends: Arc::new((peer, jid("romeo@montague.lit/o"))), ..params() };
        let Ok(part) = IbbMemory::reserve(&memory, &params.ends.0.to_bare(), 8192) else {
            refused += 1;
            continue;
        };
        let (stream, handle) = IbbStream::sharing(params.clone(), outbound.clone(), part);
        for seq in 0..500 {
            let xml = format!(
                "<message xmlns='jabber:client' from='{}' to='{}'>\
                 <data xmlns='http://jabber.org/protocol/ibb' sid='s' seq='{seq}'>{text}</data></message>",
                params.ends.0, params.ends.1
            );
            handle.handle(&Stanza::parse(xml.parse().unwrap()).unwrap());
            assert!(memory.taken() <= total);
        }
        assert_eq!(handle.failure(), Some(IbbError::Overflow), "{n}");
        streams.push(stream);
    }
    assert!(memory.taken() >= total / 2, "{}", memory.taken());
    assert!(streams.len() > 4 && refused > 0, "new streams are refused at last: {refused}");
    drop(streams);
    assert_eq!(memory.taken(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_tells_when_it_waits_for_a_silent_peer_and_when_it_goes_on() {
    let (outbound, mut sent) = mpsc::channel(8);
    let (mut romeo, handle) = IbbStream::new(params(), outbound);
    romeo.write_all(b"x").await.unwrap();
    let block = Stanza::parse(sent.recv().await.unwrap().into_element()).unwrap();
    let begin = tokio::time::Instant::now();
    let reader = tokio::spawn(async move { romeo.read(&mut [0]).await });
    assert!(poll_fn(|cx| handle.poll_waiting(false, cx)).await);
    assert_eq!((handle.is_waiting(), begin.elapsed().as_secs()), (true, 20));
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert!(handle.handle(&from_juliet(&format!("<iq type='result' id='{}'/>", block.id))));
    assert!(!poll_fn(|cx| handle.poll_waiting(true, cx)).await);
    assert!(!handle.is_waiting());
    assert!(!reader.is_finished());
}

/// The second answer to a block is the peer's: the first one was its server's.
#[tokio::test]
async fn a_block_may_be_answered_twice() {
    let (outbound, mut sent) = mpsc::channel(8);
    let (mut romeo, handle) = IbbStream::new(params(), outbound);
    romeo.write_all(b"x").await.unwrap();
    let block = Stanza::parse(sent.recv().await.unwrap().into_element()).unwrap();
    let error = format!(
        "<iq type='error' id='{}'><error type='cancel'>\
         <recipient-unavailable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>",
        block.id
    );
    let result = format!("<iq type='result' id='{}'/>", block.id);
    assert!(handle.handle(&from_juliet(&error)));
    assert!(is_ping(&Stanza::parse(sent.recv().await.unwrap().into_element()).unwrap()));
    assert!(handle.handle(&from_juliet(&result)));
    // A third one changes nothing.
    handle.handle(&from_juliet(&error));
    romeo.write_all(b"y").await.unwrap();
    let next = Stanza::parse(sent.recv().await.unwrap().into_element()).unwrap();
    assert!(next.payload().unwrap().is("data", ns::IBB));
    assert_eq!(handle.failure(), None);
    assert_eq!(romeo.delivered(), 1);
}

/// In-band bytestreams end both ways at once: the other user learns of it after the last block, without a pause.
#[tokio::test(start_paused = true)]
async fn a_close_reaches_the_other_leg_after_the_last_block() {
    let (mut romeo, leg_a, _handles_a) = pair(&params(), 16);
    let (leg_b, mut juliet, _handles_b) = pair(&params(), 16);
    let relay = tokio::spawn(pipe::relay(leg_a, leg_b, pipe::StreamOptions::default()));
    let start = tokio::time::Instant::now();
    juliet.write_all(b"this is never read").await.unwrap();
    let mut read = Vec::new();
    let writing = async move {
        romeo.write_all(&[7; 300_000]).await.unwrap();
        romeo.flush().await.unwrap();
    };
    let (_closed, read_all) = tokio::join!(writing, juliet.read_to_end(&mut read));
    read_all.unwrap();
    assert_eq!(read.len(), 300_000);
    assert_eq!(relay.await.unwrap().end, pipe::Ended::Eof);
    assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
}
