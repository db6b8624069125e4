use proptest::prelude::*;

use super::*;
use crate::paths::records::{USE_LENGTH, read_use};

/// A direction of a connection.
#[derive(Debug, Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    /// What is sent is lost from now on.
    is_dead: bool,
    /// The sender has closed it: the end comes after the bytes.
    is_closed: bool,
}

/// Both directions of a connection, each by its sender, and whether each end holds it.
#[derive(Debug, Default)]
struct Connection {
    number: u32,
    pipes: [Pipe; 2],
    holds: [bool; 2],
    /// How many bytes each end has put on it.
    carried: [usize; 2],
    /// Nothing tells an end that the other one has closed it.
    is_silent: bool,
}

/// Two ends, a relay between them, and at times a direct connection.
#[derive(Debug)]
struct World {
    ends: [Machine; 2],
    connections: Vec<Connection>,
    now: Instant,
    /// The streams, in whole records, and how much of each was written and read.
    streams: [Vec<u8>; 2],
    written: [usize; 2],
    read: [usize; 2],
    /// The ends that only write.
    is_deaf: [bool; 2],
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let relay = Connection { number: RELAY, holds: [true; 2], ..Connection::default() };
        let ends = [Role::Chooses, Role::Follows].map(|role| {
            let mut end = Machine::new(role, now);
            end.open(now);
            end.renew();
            end
        });
        Self {
            ends,
            connections: vec![relay],
            now,
            streams: Default::default(),
            written: [0; 2],
            read: [0; 2],
            is_deaf: [false; 2],
        }
    }

    /// Makes a record with so many bytes of payload, and writes as much as is taken.
    fn write(&mut self, end: usize, length: usize) {
        if !self.ends[end].is_finished() {
            let stream = &mut self.streams[end];
            stream.extend([23, 3, 3]);
            stream.extend(u16::try_from(length).unwrap().to_be_bytes());
            let mut state = (stream.len() as u32).wrapping_mul(2_654_435_761) | 1;
            stream.extend((0..length).map(|_| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                state.to_be_bytes()[0]
            }));
        }
        self.push(end);
    }

    fn push(&mut self, end: usize) -> bool {
        let rest = &self.streams[end][self.written[end]..];
        // TLS hands over what it has in any pieces.
        let piece = rest.len().min(1 + self.written[end] % 40_000);
        let taken = self.ends[end].write(&rest[..piece]).unwrap();
        self.written[end] += taken;
        taken > 0
    }

    fn finish(&mut self, end: usize) {
        if self.written[end] == self.streams[end].len() {
            self.ends[end].finish();
        }
    }

    /// Reads at most so many bytes, and compares them with the stream.
    fn take(&mut self, end: usize, most: usize) -> bool {
        let before = self.read[end];
        while self.read[end] - before < most {
            let chunk = self.ends[end].chunk();
            let length = chunk.len().min(most - (self.read[end] - before));
            if length == 0 {
                break;
            }
            let wanted = &self.streams[1 - end][self.read[end]..][..length];
            assert!(chunk[..length] == *wanted, "wrong bytes from {}", self.read[end]);
            self.ends[end].consume(length, self.now);
            self.read[end] += length;
        }
        if self.ends[end].has_ended() {
            assert_eq!(self.read[end], self.streams[1 - end].len(), "the end came early");
            assert!(self.ends[1 - end].is_finished());
        }
        self.read[end] > before
    }

    fn transmit(&mut self, end: usize, number: u32) -> bool {
        let mut out = Vec::new();
        self.ends[end].transmit(number, self.now, &mut out);
        let moved = !out.is_empty();
        if let Some(one) = self.connections.iter_mut().find(|one| one.number == number) {
            one.carried[end] += out.len();
            let pipe = &mut one.pipes[end];
            if one.holds[end] && !pipe.is_dead {
                pipe.bytes.extend(out);
            }
        }
        self.check(end);
        moved
    }

    /// Delivers at most so many bytes to an end.
    fn deliver(&mut self, end: usize, number: u32, most: usize) -> bool {
        let Some(one) = self.connections.iter_mut().find(|one| one.number == number) else {
            return false;
        };
        let pipe = &mut one.pipes[1 - end];
        if !one.holds[end] {
            // A new connection is taken with its first record.
            let newest = if is_direct(number) { self.ends[1].newest } else { self.ends[1].leg() };
            if end == 0 || pipe.bytes.len() < USE_LENGTH || number <= newest {
                return false;
            }
            let first: Vec<u8> = pipe.bytes.drain(..USE_LENGTH).collect();
            assert_eq!(read_use(first[..].try_into().unwrap()), Some(number));
            one.holds[1] = self.ends[1].install(number, self.now);
            if !one.holds[1] {
                (one.pipes[1].is_closed, one.pipes[0].is_dead) = (true, true);
                one.pipes[0].bytes.clear();
            }
            self.check(end);
            return true;
        }
        let length = most.min(pipe.bytes.len());
        let bytes: Vec<u8> = pipe.bytes.drain(..length).collect();
        if length > 0 {
            self.ends[end].receive(number, &bytes, self.now).unwrap();
        } else if pipe.is_closed {
            one.holds[end] = false;
            self.ends[end].handle_loss(number, self.now);
        } else {
            return false;
        }
        self.check(end);
        true
    }

    /// Handles what the machine says, and checks its bounds.
    fn check(&mut self, end: usize) {
        while let Some(event) = self.ends[end].poll_event() {
            let Event::Closed(number) = event else { continue };
            if let Some(one) = self.connections.iter_mut().find(|one| one.number == number) {
                one.holds[end] = false;
                one.pipes[end].is_closed |= !one.is_silent;
                one.pipes[1 - end].is_dead = true;
            }
        }
        let most = usize::try_from(WINDOW).unwrap();
        let [outgoing, incoming] = self.ends[end].memory();
        assert!(outgoing <= most + (1 << 15) && incoming <= most, "{outgoing} {incoming}");
        assert_eq!(self.ends[end].fault(), None);
    }

    fn connect(&mut self) {
        let direct = self.ends[0].is_parted();
        if let Some(number) = self.ends[0].next_number().filter(|_| !direct) {
            assert!(self.ends[0].install(number, self.now));
            let holds = [true, false];
            self.connections.push(Connection { number, holds, ..Connection::default() });
            self.check(0);
        }
    }

    /// Negotiates a new leg of the relay, if the TLS client has none. An end that is done does not know whether the other one is,
    /// and negotiates no more.
    fn renew(&mut self) {
        for end in [0, 1] {
            let [own, other] = [&self.ends[end], &self.ends[1 - end]];
            if !own.has_relay() && !own.is_over() && other.is_over() {
                assert!(self.ends[1 - end].is_done() && self.ends[end].is_whole());
                self.ends[end].give_up();
            }
        }
        if matches!(self.ends[1].need(), Need::Better | Need::Path) {
            let lost = self.ends[1].leg();
            self.ends[0].handle_told_loss(lost, self.now);
            self.check(0);
        }
        if self.ends[0].has_relay() {
            return;
        }
        if let Some(number) = self.ends[0].next_leg() {
            assert!(self.ends[0].install(number, self.now));
            let holds = [true, false];
            self.connections.push(Connection { number, holds, ..Connection::default() });
            self.check(0);
        }
    }

    /// Returns the newest direct connection, or the newest leg of the relay.
    fn newest(&self, direct: bool) -> Option<u32> {
        self.numbers().into_iter().rfind(|number| is_direct(*number) == direct)
    }

    /// Breaks a connection: of the bytes on their way only some arrive. The relay is not lost by silence.
    fn cut(&mut self, direct: bool, kept: [usize; 2], is_silent: bool) {
        let Some(number) = self.newest(direct) else { return };
        for one in self.connections.iter_mut().filter(|one| one.number == number) {
            one.is_silent |= is_silent && direct;
            for (pipe, kept) in one.pipes.iter_mut().zip(kept) {
                pipe.bytes.truncate(pipe.bytes.len() * kept / 100);
                pipe.is_dead = true;
                pipe.is_closed |= !is_silent || !direct;
            }
        }
    }

    /// Changes the network of an end. It loses its direct connection, its leg of the relay, both or neither.
    fn change_network(&mut self, end: usize, [direct, relay]: [bool; 2]) {
        let held = self.connections.iter().filter(|one| one.holds[end]).map(|one| one.number);
        let lost: Vec<u32> =
            held.filter(|one| if is_direct(*one) { direct } else { relay }).collect();
        self.ends[end].handle_network(&lost, self.now);
        self.check(end);
    }

    fn numbers(&self) -> Vec<u32> {
        self.connections.iter().map(|one| one.number).collect()
    }

    /// Moves everything that moves by itself; returns whether something did.
    fn step(&mut self, read: usize) -> bool {
        let mut moved = false;
        for end in [0, 1] {
            moved |= self.push(end);
            for number in self.numbers() {
                moved |= self.transmit(end, number);
                moved |= self.deliver(1 - end, number, 50_000);
            }
            if !self.is_deaf[end] {
                moved |= self.take(end, read);
            }
        }
        moved
    }

    fn tick(&mut self, time: Duration) {
        self.now += time;
        for end in [0, 1] {
            self.ends[end].handle_deadline(self.now);
            self.check(end);
        }
    }

    /// Lets both ends write everything, end, and read to the end.
    fn settle(&mut self, read: usize) {
        let begin = self.now;
        let mut rounds = 0;
        loop {
            rounds += 1;
            assert!(rounds < 1_000, "it runs in circles");
            while self.step(read) {}
            for end in [0, 1] {
                self.finish(end);
            }
            self.renew();
            if self.step(read) {
                continue;
            }
            if self.ends.iter().all(|end| end.is_done() || end.is_over()) {
                break;
            }
            let next = self.ends.iter().filter_map(Machine::deadline).min();
            assert!(next.is_some(), "it stands still: {self:#?}");
            // It may be over: a direct path may be silent for less time once there is a new leg beside it.
            self.tick(next.unwrap().saturating_duration_since(self.now));
            assert!(self.now - begin < Duration::from_secs(60), "it takes for ever");
        }
        for end in [0, 1] {
            assert!(self.ends[end].has_ended());
            assert_eq!(self.read[end], self.streams[1 - end].len());
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Write(usize, usize),
    Transmit(usize, bool),
    Deliver(usize, bool, usize),
    Take(usize, usize),
    Tick(u64),
    Step,
    Connect,
    Cut(bool, [usize; 2], bool),
    Renew,
    Network(usize, [bool; 2]),
    Finish(usize),
}

fn ops() -> impl Strategy<Value = Op> {
    let end = 0_usize..2;
    prop_oneof![
        6 => (end.clone(), 0_usize..16_641).prop_map(|(end, length)| Op::Write(end, length)),
        2 => (end.clone(), 0_usize..40).prop_map(|(end, length)| Op::Write(end, length)),
        6 => (end.clone(), any::<bool>()).prop_map(|(end, direct)| Op::Transmit(end, direct)),
        8 => (end.clone(), any::<bool>(), prop_oneof![1_usize..9, 1_usize..20_000])
            .prop_map(|(end, direct, most)| Op::Deliver(end, direct, most)),
        3 => (end.clone(), 1_usize..60_000).prop_map(|(end, most)| Op::Take(end, most)),
        2 => (1_u64..900).prop_map(Op::Tick),
        1 => Just(Op::Step),
        2 => Just(Op::Connect),
        2 => (any::<bool>(), [0_usize..101, 0_usize..101], any::<bool>())
            .prop_map(|(direct, kept, silent)| Op::Cut(direct, kept, silent)),
        1 => Just(Op::Renew),
        1 => (end.clone(), any::<[bool; 2]>()).prop_map(|(end, lost)| Op::Network(end, lost)),
        1 => end.prop_map(Op::Finish),
    ]
}

impl World {
    fn run(&mut self, op: Op) {
        let number = |direct: bool, world: &Self| world.newest(direct).unwrap_or(RELAY);
        match op {
            Op::Write(end, length) => self.write(end, length),
            Op::Transmit(end, direct) => {
                self.transmit(end, number(direct, self));
            }
            Op::Deliver(end, direct, most) => {
                self.deliver(end, number(direct, self), most);
            }
            Op::Take(end, most) => {
                self.take(end, most);
            }
            Op::Tick(millis) => self.tick(Duration::from_millis(millis)),
            Op::Step => {
                self.step(10_000);
            }
            Op::Connect => self.connect(),
            Op::Cut(direct, kept, silent) => self.cut(direct, kept, silent),
            Op::Renew => self.renew(),
            Op::Network(end, lost) => self.change_network(end, lost),
            Op::Finish(end) => self.finish(end),
        }
    }
}

#[test]
fn bytes_that_a_slow_path_still_holds_do_not_hold_up_the_next_path() {
    let mut world = World::new();
    for _ in 0..400 {
        world.write(0, 16_000);
    }
    while world.push(0) || world.transmit(0, RELAY) {}
    assert!(world.written[0] as u64 <= WINDOW && world.written[0] < world.streams[0].len());
    world.connect();
    // From now on the relay delivers nothing.
    let direct = 1;
    for _ in 0..2 {
        let mut moved = true;
        while moved {
            moved = world.push(0) | world.transmit(0, direct) | world.deliver(1, direct, 50_000);
            moved |= world.take(1, usize::MAX);
            moved |= world.transmit(1, direct) | world.deliver(0, direct, 50_000);
        }
        world.tick(DRAIN);
    }
    assert_eq!(world.read[1], world.streams[0].len());
    // What it holds comes late, for nothing.
    world.settle(usize::MAX);
}

#[test]
fn what_the_relay_delivers_in_time_is_not_sent_again_on_the_next_path() {
    let mut world = World::new();
    for _ in 0..100 {
        world.write(0, 16_000);
    }
    while world.push(0) || world.transmit(0, RELAY) {}
    world.connect();
    for _ in 0..50 {
        world.write(0, 16_000);
    }
    let (relayed, direct) = (100 * 16_005, 1);
    while world.push(0) || world.transmit(0, direct) {}
    let carried = |world: &World| world.connections[1].pipes[0].bytes.len();
    let all = carried(&world);
    assert!((50 * 16_005..50 * 16_005 + 100).contains(&all), "{all}");
    // The new path may be the faster one.
    while world.deliver(1, direct, 50_000) {}
    assert_eq!(world.read[1], 0);
    while world.deliver(1, RELAY, 50_000) | world.take(1, usize::MAX) {}
    assert_eq!(world.read[1], 150 * 16_005);
    while world.transmit(1, direct) | world.deliver(0, direct, 50_000) {}
    world.tick(DRAIN);
    while world.transmit(0, direct) {}
    assert!(carried(&world) < 100, "of {relayed} bytes none comes again");
    world.settle(usize::MAX);
}

/// The relay delivers only a part in time: the rest of it is sent again, and what has gone over the new path is not.
#[test]
fn only_what_the_relay_still_holds_is_sent_again() {
    let mut world = World::new();
    for _ in 0..100 {
        world.write(0, 16_000);
    }
    while world.push(0) || world.transmit(0, RELAY) {}
    world.connect();
    for _ in 0..50 {
        world.write(0, 16_000);
    }
    let direct = 1;
    while world.push(0) || world.transmit(0, direct) {}
    while world.deliver(1, direct, 50_000) {}
    world.deliver(1, RELAY, 60 * 16_005);
    while world.take(1, usize::MAX) | world.transmit(1, direct) | world.deliver(0, direct, 50_000) {
    }
    world.tick(DRAIN);
    while world.transmit(0, direct) {}
    let again = world.connections[1].pipes[0].bytes.len();
    assert!((39 * 16_005..45 * 16_005).contains(&again), "{again}");
    while world.deliver(1, direct, 50_000) {}
    world.take(1, usize::MAX);
    assert_eq!(world.read[1], 150 * 16_005);
    world.settle(usize::MAX);
}

impl World {
    /// Returns a stream that has filled its window over the relay when it moves to a direct connection.
    fn with_a_full_relay() -> Self {
        let mut world = Self::new();
        for _ in 0..300 {
            world.write(0, 16_000);
        }
        while world.push(0) || world.transmit(0, RELAY) {}
        assert!(world.ends[0].outgoing.room() < 16_005);
        world.connect();
        world
    }

    /// Lets the relay deliver so many bytes, and the direct connection all that it has, and then 100 ms pass.
    fn pass(&mut self, relayed: usize) {
        if relayed > 0 {
            self.deliver(1, RELAY, relayed);
        }
        let mut moved = true;
        while moved {
            moved = self.push(0) | self.transmit(0, 1) | self.deliver(1, 1, 50_000);
            moved |= self.take(1, usize::MAX) | self.transmit(1, 1) | self.deliver(0, 1, 50_000);
        }
        self.tick(Duration::from_millis(100));
    }
}

/// The other end has a whole window behind a gap when the relay, which alone has carried what is missing, breaks. What it has comes
/// once more then.
#[test]
fn a_relay_that_breaks_soon_after_the_move_does_not_end_the_stream() {
    for pieces in [1_000, 16_005, 50_000] {
        let mut world = World::new();
        world.write(0, 16_000);
        while world.push(0) || world.transmit(0, RELAY) {}
        world.connect();
        for _ in 0..300 {
            world.write(0, 16_000);
        }
        while world.push(0) | world.transmit(0, 1) | world.deliver(1, 1, 50_000) {}
        assert_eq!(world.read[1] + world.ends[1].chunk().len(), 0);
        world.cut(false, [0, 0], false);
        assert!(world.deliver(0, RELAY, 50_000));
        while world.transmit(0, 1) {}
        while world.deliver(1, 1, pieces) {}
        assert!(world.ends[1].memory()[1] > usize::try_from(WINDOW).unwrap() - 16_005);
        world.settle(usize::MAX);
    }
}

/// The relay goes on to deliver, and what it has comes on the direct connection too: the second time from further ahead, and over what
/// the first time has brought.
#[test]
fn bytes_that_come_again_in_the_middle_of_what_is_kept_take_no_room() {
    let now = Instant::now();
    let mut machine = Machine::new(Role::Follows, now);
    machine.open(now);
    assert!(machine.install(1, now));
    let stream: Vec<u8> = (0..40).flat_map(|_| [23, 3, 3, 0, 5, 1, 2, 3, 4, 5]).collect();
    let mut say = |path: u32, from: usize, to: usize| {
        let mut bytes = Vec::new();
        Control::From(from as u64).put(&mut bytes);
        bytes.extend(&stream[from..to]);
        machine.receive(path, &bytes, now).unwrap();
        machine.memory()[1]
    };
    assert_eq!(say(1, 300, 400), 100);
    assert_eq!(say(1, 200, 250), 150);
    assert_eq!(say(1, 100, 400), 300);
    assert_eq!(say(RELAY, 50, 350), 350);
    assert_eq!(say(RELAY, 0, 200), 400);
    assert_eq!(machine.chunk(), stream);
}

/// Where the direct connection and the relay have the same bottleneck, the stream stands still while bytes come twice.
#[test]
fn nothing_is_sent_again_while_the_relay_delivers() {
    let mut world = World::with_a_full_relay();
    let relayed = world.connections[0].pipes[0].bytes.len();
    // It takes 1.2 s, and may deliver nothing for 0.5 s.
    for _ in 0..12 {
        world.pass(relayed.div_ceil(12));
    }
    assert_eq!(world.read[1], world.streams[0].len());
    let direct = world.connections[1].carried[0] - (world.read[1] - relayed);
    assert!(direct < 100, "{direct} bytes beside those that come after the relay's");
    world.settle(usize::MAX);
}

#[test]
fn a_relay_that_is_slow_or_stops_does_not_hold_the_stream_for_long() {
    for (pace, stops) in [(0, 0), (1_000, 30), (100_000, 8), (100_000, 30), (300_000, 3)] {
        let mut world = World::with_a_full_relay();
        let mut tenths = 0;
        while world.read[1] < world.streams[0].len() {
            world.pass(if tenths < stops { pace } else { 0 });
            tenths += 1;
            assert!(tenths < 30, "{pace} bytes in each tenth of a second until {stops}");
        }
        world.settle(usize::MAX);
    }
}

#[test]
fn what_the_relay_has_delivered_is_no_sign_of_life_of_a_path_that_has_it_too() {
    let mut world = World::new();
    for _ in 0..400 {
        world.write(0, 16_000);
    }
    while world.push(0) || world.transmit(0, RELAY) {}
    world.connect();
    // The connection takes some bytes, then none, and delivers nothing.
    for _ in 0..4 {
        world.transmit(0, 1);
    }
    let begin = world.now;
    while world.ends[0].current() != RELAY {
        let mut moved = true;
        while moved {
            moved = world.deliver(1, RELAY, 50_000) | world.take(1, usize::MAX);
            moved |= world.transmit(1, RELAY) | world.deliver(0, RELAY, 50_000);
        }
        world.tick(Duration::from_millis(100));
        assert!(world.now - begin < Duration::from_secs(2), "it waits for ever");
    }
    assert!(world.read[1] > 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_arrives_once_and_in_order_whatever_happens_to_the_paths(
        ops in prop::collection::vec(ops(), 0..200),
        read in prop_oneof![1_usize..500, Just(usize::MAX)],
    ) {
        let mut world = World::new();
        for op in ops {
            world.run(op);
        }
        world.settle(read.max(world.streams[0].len() / 500 + 1));
    }

    #[test]
    fn what_an_enemy_says_never_panics_and_is_bounded(
        said in prop::collection::vec(said(), 1..60),
        parted in any::<bool>(),
        role in prop_oneof![Just(Role::Chooses), Just(Role::Follows)],
    ) {
        let mut now = Instant::now();
        let mut machine = Machine::new(role, now);
        machine.write(&[23, 3, 3, 0, 2, 7, 7]).unwrap();
        if parted {
            machine.install(1, now);
        }
        let mut out = Vec::new();
        for (number, control, record) in said {
            let mut bytes = Vec::new();
            control.put(&mut bytes);
            bytes.extend(record);
            let fault = machine.receive(number, &bytes, now).err();
            prop_assert_eq!(fault.is_some(), machine.fault().is_some() && machine.is_over());
            for path in [RELAY, 1] {
                out.clear();
                machine.transmit(path, now, &mut out);
                prop_assert!(out.len() < 1000);
            }
            now += Duration::from_millis(300);
            machine.handle_deadline(now);
            prop_assert!(machine.memory()[1] <= usize::try_from(WINDOW).unwrap());
            prop_assert!(machine.events.iter().filter(|e| matches!(e, Event::Sealed(_))).count() <= SEALED);
            if fault.is_some() {
                break;
            }
        }
    }
}

fn offsets() -> impl Strategy<Value = u64> {
    prop_oneof![0_u64..40, (WINDOW - 20)..(WINDOW + 20), Just(u64::MAX), Just(u64::MAX - 5)]
}

fn said() -> impl Strategy<Value = (u32, Control, Vec<u8>)> {
    let control = prop_oneof![
        1 => offsets().prop_map(Control::Ack),
        3 => offsets().prop_map(Control::From),
        1 => offsets().prop_map(Control::End),
        1 => any::<u32>().prop_map(Control::Ping),
        1 => any::<u32>().prop_map(Control::Pong),
        1 => Just(Control::Sealed(vec![1; 1000])),
        1 => prop_oneof![0_u32..3, Just(u32::MAX)].prop_map(Control::Lost),
        1 => (0_u32..3).prop_map(Control::Use),
    ];
    let record = prop_oneof![
        2 => Just(Vec::new()),
        2 => (0_u8..30).prop_map(|length| {
            let mut record = vec![23, 3, 3, 0, length];
            record.resize(5 + usize::from(length), 9);
            record
        }),
        1 => Just(vec![0xff; 9]),
    ];
    (0_u32..2, control, record)
}

/// Returns a machine that has transmitted one record of 7 bytes.
fn sent() -> (Machine, Instant) {
    let now = Instant::now();
    let mut machine = Machine::new(Role::Follows, now);
    machine.open(now);
    machine.write(&[23, 3, 3, 0, 2, 7, 7]).unwrap();
    machine.transmit(RELAY, now, &mut Vec::new());
    (machine, now)
}

fn told(machine: &mut Machine, controls: &[Control], now: Instant) -> Option<Fault> {
    let mut bytes = Vec::new();
    controls.iter().for_each(|control| control.put(&mut bytes));
    machine.receive(RELAY, &bytes, now).err()
}

#[test]
fn nothing_of_the_layer_comes_between_the_records_of_tls_before_the_peer_is_verified() {
    let mut now = Instant::now();
    let mut machine = Machine::new(Role::Chooses, now);
    let record = [23, 3, 3, 0, 2, 7, 7];
    machine.write(&record).unwrap();
    for _ in 0..20_000 {
        machine.receive(RELAY, &record, now).unwrap();
        machine.consume(record.len(), now);
    }
    let mut sent = Vec::new();
    for _ in 0..3 {
        machine.transmit(RELAY, now, &mut sent);
        machine.handle_deadline(now);
        now += Duration::from_secs(10);
    }
    assert_eq!(sent, record);
    assert_eq!(machine.deadline(), None);
    machine.open(now);
    machine.transmit(RELAY, now, &mut sent);
    let mut expected = record.to_vec();
    Control::Ack(20_000 * record.len() as u64).put(&mut expected);
    assert_eq!(sent, expected);
}

#[test]
fn what_cannot_be_is_a_clear_error() {
    let beyond = WINDOW + 1;
    for (controls, fault) in [
        (vec![Control::Ack(8)], Fault::NotSent { offset: 8, sent: 7 }),
        (vec![Control::From(beyond)], Fault::Window { offset: beyond }),
        (vec![Control::From(5)], Fault::Missing { offset: 5 }),
        (vec![Control::End(beyond)], Fault::Window { offset: beyond }),
        (vec![Control::End(3), Control::End(4)], Fault::AfterEnd { end: 4, offset: 0 }),
    ] {
        let (mut machine, now) = sent();
        assert_eq!(told(&mut machine, &controls, now), Some(fault));
        assert!(machine.is_over());
        assert_eq!(machine.poll_event(), Some(Event::Closed(RELAY)));
    }
    let (mut machine, now) = sent();
    let mut bytes = Vec::new();
    Control::End(4).put(&mut bytes);
    bytes.extend([23, 3, 3, 0, 0]);
    let fault = machine.receive(RELAY, &bytes, now);
    assert_eq!(fault, Err(Fault::AfterEnd { end: 4, offset: 5 }));
    let (mut machine, now) = sent();
    assert!(machine.install(1, now));
    assert_eq!(machine.receive(1, &[23, 3, 3, 0, 0], now), Err(Fault::Unannounced));
}

#[test]
fn a_reader_that_is_slow_stops_the_writer_and_nothing_else() {
    let mut world = World::new();
    world.is_deaf = [true; 2];
    for end in [0, 1] {
        for _ in 0..400 {
            world.write(end, 16_384);
        }
    }
    while world.step(0) {}
    let kept = world.ends[0].memory();
    assert!(kept[0] > (4 << 20) - 17_000 && kept[1] > (4 << 20) - 17_000, "{kept:?}");
    // Nobody reads, and still the path moves, and lives.
    world.connect();
    for _ in 0..40 {
        while world.step(0) {}
        world.tick(Duration::from_millis(700));
    }
    assert_eq!((world.ends[0].current(), world.ends[1].current()), (1, 1));
    world.is_deaf = [false; 2];
    world.settle(usize::MAX);
    assert_eq!(world.read[0], 400 * 16_389);
}

#[test]
fn a_silent_path_is_given_up_within_two_seconds_and_an_idle_one_is_kept() {
    let mut world = World::new();
    world.write(0, 100);
    world.connect();
    while world.step(usize::MAX) {}
    assert_eq!([world.ends[0].current(), world.ends[1].current()], [1, 1]);
    let mut pings = [0; 2];
    for _ in 0..1300 {
        world.tick(Duration::from_millis(100));
        for (number, pings) in [RELAY, 1].into_iter().zip(&mut pings) {
            *pings += usize::from(world.ends[0].path(number).unwrap().ping.is_some());
        }
        while world.step(usize::MAX) {}
    }
    assert_eq!([world.ends[0].current(), world.ends[1].current()], [1, 1]);
    // 130 seconds: each is kept alive at its own pace, by whichever end is first.
    assert!((1..=2).contains(&pings[0]) && (4..=8).contains(&pings[1]), "{pings:?}");
    world.cut(true, [0, 0], true);
    world.write(0, 100);
    let before = world.now;
    while world.ends[0].current() == 1 || world.ends[1].current() == 1 {
        world.tick(Duration::from_millis(50));
        while world.step(usize::MAX) {}
    }
    assert!(world.now - before < Duration::from_secs(2), "{:?}", world.now - before);
    world.settle(usize::MAX);
}

#[test]
fn a_lost_relay_does_not_end_a_stream_that_goes_directly() {
    let mut world = World::new();
    world.write(0, 1000);
    world.connect();
    // A record is on its way over the relay when the relay ends.
    world.transmit(0, RELAY);
    while world.deliver(1, 1, usize::MAX) || world.transmit(0, 1) {}
    for pipe in &mut world.connections[0].pipes {
        pipe.bytes.clear();
        (pipe.is_dead, pipe.is_closed) = (true, true);
    }
    world.write(1, 1000);
    world.settle(usize::MAX);
}

#[test]
fn a_path_that_is_told_lost_before_it_is_known_is_never_used() {
    let (mut machine, now) = sent();
    assert_eq!(told(&mut machine, &[Control::Lost(3)], now), None);
    assert!(!machine.install(3, now) && machine.install(4, now));
    // The enemy on the relay can keep the stream there, and no more.
    assert_eq!(told(&mut machine, &[Control::Lost(4 + FURTHEST)], now), None);
    assert_eq!(machine.current(), RELAY);
    assert!(!machine.install(5, now));
    // The same holds for later legs of the relay, and it cannot take the leg that it is on.
    assert_eq!(told(&mut machine, &[Control::Lost(LATER + 1)], now), None);
    assert!(machine.has_relay());
    machine.renew();
    assert!(!machine.install(LATER + 1, now) && machine.install(LATER + 2, now));
    assert_eq!(machine.current(), LATER + 2);
}

/// Otherwise no number would be left for the paths to come.
#[test]
fn a_number_far_above_the_highest_one_is_of_no_path() {
    for (first, last) in [(1, LATER - 1), (LATER, u32::MAX)] {
        let (mut machine, now) = sent();
        machine.renew();
        assert_eq!(told(&mut machine, &[Control::Lost(last)], now), None);
        assert!(!machine.install(last, now) && !machine.install(first + FURTHEST, now));
        assert!(machine.install(first, now) && machine.install(first + FURTHEST, now));
        assert_eq!(machine.current(), first + FURTHEST);
    }
}

#[test]
fn a_direct_connection_has_an_answer_once_something_has_come_on_it() {
    let (mut machine, now) = sent();
    assert!(machine.install(1, now));
    machine.receive(RELAY, &[23, 3, 3, 0, 0], now).unwrap();
    assert!(!machine.has_answer());
    let mut pong = Vec::new();
    Control::Pong(1).put(&mut pong);
    machine.receive(1, &pong, now).unwrap();
    assert!(machine.has_answer());
    machine.handle_loss(1, now);
    assert!(machine.has_answer());
    assert!(machine.install(2, now) && !machine.has_answer());
}

#[test]
fn a_stream_without_a_path_waits_for_a_new_leg_of_the_relay_but_not_for_ever() {
    let (mut machine, now) = sent();
    machine.handle_loss(RELAY, now);
    assert!(machine.is_over(), "nobody negotiates legs");
    let (mut machine, now) = sent();
    machine.renew();
    machine.handle_loss(RELAY, now);
    assert!(machine.is_stranded() && !machine.is_over());
    assert_eq!(machine.deadline(), Some(now + RENEWAL));
    machine.handle_deadline(now + RENEWAL);
    assert!(machine.is_over() && !machine.install(LATER, now));

    let (mut machine, now) = sent();
    machine.renew();
    machine.handle_loss(RELAY, now);
    assert!(machine.install(LATER, now));
    // Everything that was not acknowledged, from its first record on.
    let (mut out, mut wanted) = (Vec::new(), Vec::new());
    machine.transmit(LATER, now, &mut out);
    Control::Ack(0).put(&mut wanted);
    Control::From(0).put(&mut wanted);
    wanted.extend([23, 3, 3, 0, 2, 7, 7]);
    assert_eq!(out, wanted);
    // What still comes on the old leg is of no stream.
    machine.receive(RELAY, &[23, 3, 3, 0, 0], now).unwrap();
    assert!(machine.chunk().is_empty());
    machine.handle_loss(LATER, now);
    machine.give_up();
    assert!(machine.is_over());
}

/// A side that changes its network in the middle of a direct transfer loses both of its connections, and no end of the direct one
/// reaches the other side, which has nothing to send and so does not miss an answer.
#[test]
fn a_new_leg_tells_the_loss_of_a_direct_connection_that_could_not_be_told() {
    for sender in [0, 1] {
        let mut world = World::new();
        world.connect();
        world.write(sender, 16_000);
        while world.step(usize::MAX) {}
        assert!(world.ends.iter().all(Machine::is_parted));
        world.cut(true, [0; 2], true);
        world.cut(false, [0; 2], true);
        world.change_network(sender, [true, true]);
        for _ in 0..600 {
            world.write(sender, 16_000);
        }
        let begin = world.now;
        while world.read[1 - sender] < world.streams[sender].len() {
            world.renew();
            if !world.step(usize::MAX) {
                let next = world.ends.iter().filter_map(Machine::deadline).min().unwrap();
                world.tick(next - world.now);
            }
            assert!(world.now - begin < Duration::from_secs(3), "{sender}");
        }
    }
}

/// The other end is gone for good, and the relay connects this side again and again.
#[test]
fn a_stream_does_not_go_from_leg_to_leg_on_which_nothing_comes_for_ever() {
    let (mut machine, begin) = sent();
    machine.renew();
    let mut now = begin;
    let mut number = LATER;
    machine.handle_loss(RELAY, now);
    while machine.install(number, now) {
        now += Duration::from_secs(1);
        machine.handle_loss(number, now);
        machine.handle_deadline(now);
        number += 1;
        assert!(now - begin <= STANDSTILL);
    }
    assert!(machine.is_over() && now - begin >= STANDSTILL);
    // It is another matter if something comes now and then.
    let (mut machine, mut now) = sent();
    machine.renew();
    machine.handle_loss(RELAY, now);
    for number in LATER..LATER + 100 {
        assert!(machine.install(number, now));
        machine.receive(number, &[23], now).unwrap();
        now += Duration::from_secs(1);
        machine.handle_loss(number, now);
        machine.handle_deadline(now);
    }
}

/// A relay that is slow after a change of the other end's network works, and nothing may be given up for it.
#[test]
fn a_leg_that_the_other_end_doubts_stays_until_there_is_a_new_one() {
    let (mut machine, now) = sent();
    machine.renew();
    machine.handle_doubt(RELAY + 1);
    assert_eq!(machine.need(), Need::Nothing);
    machine.handle_doubt(RELAY);
    assert_eq!((machine.need(), machine.current()), (Need::Better, RELAY));
    machine.receive(RELAY, &[23, 3, 3, 0, 0], now).unwrap();
    assert_eq!(machine.need(), Need::Nothing);
    machine.handle_doubt(RELAY);
    let mut last = Machine::new(Role::Chooses, now);
    last.renew();
    last.handle_doubt(RELAY);
    assert!(last.install(LATER, now));
    assert_eq!((last.need(), last.current()), (Need::Nothing, LATER));
}

/// The relay has connected only this side of its newest leg.
#[test]
fn a_leg_of_which_nothing_comes_is_given_up_when_the_other_end_has_none() {
    for (comes, waits, is_lost) in
        [(false, MUTE, true), (true, MUTE, false), (false, MUTE / 2, false)]
    {
        let now = Instant::now();
        let mut machine = Machine::new(Role::Chooses, now);
        machine.renew();
        assert!(machine.install(LATER, now));
        if comes {
            machine.receive(LATER, &[23, 3], now).unwrap();
        }
        machine.handle_told_loss(RELAY, now + waits);
        assert_eq!(machine.is_stranded(), is_lost);
        // An older word says nothing of a newer leg that works.
        machine.handle_told_loss(LATER, now + waits);
        assert!(machine.is_stranded());
    }
}

#[test]
fn an_acknowledgement_waits_for_more_but_not_for_long() {
    let (mut machine, now) = sent();
    machine.receive(RELAY, &[23, 3, 3, 0, 0], now).unwrap();
    machine.consume(5, now);
    let mut out = Vec::new();
    machine.transmit(RELAY, now, &mut out);
    assert!(out.is_empty());
    let due = machine.deadline().unwrap();
    assert_eq!(due - now, Duration::from_millis(200));
    machine.handle_deadline(due);
    machine.transmit(RELAY, due, &mut out);
    let mut wanted = Vec::new();
    Control::Ack(5).put(&mut wanted);
    assert_eq!(out, wanted);
    assert_eq!(machine.deadline(), None);
    out.clear();
    // The end counts as a byte.
    assert_eq!(told(&mut machine, &[Control::End(5)], due), None);
    machine.transmit(RELAY, due, &mut out);
    wanted.clear();
    Control::Ack(6).put(&mut wanted);
    assert_eq!(out, wanted);
}

#[test]
fn a_relay_that_is_silent_after_a_change_of_the_network_is_replaced_unless_it_answers() {
    let (mut machine, now) = sent();
    // Without another path, and without somebody who negotiates legs, it may as well stay.
    machine.handle_network(&[], now);
    assert_eq!(machine.deadline(), None);
    machine.renew();
    machine.handle_network(&[], now);
    let mut out = Vec::new();
    machine.transmit(RELAY, now, &mut out);
    assert!(out.starts_with(&[26, 3, 3, 0, 5, 4]), "a ping: {out:?}");
    assert_eq!(machine.deadline(), Some(now + SILENCE));
    // Whatever comes is a sign of life.
    machine.receive(RELAY, &[23, 3, 3, 0, 0], now).unwrap();
    assert_ne!(machine.deadline(), Some(now + SILENCE));
    machine.handle_network(&[], now);
    machine.handle_deadline(now + SILENCE);
    assert_eq!((machine.need(), machine.has_relay()), (Need::Better, false));
    // Perhaps it is just slow, and nobody can negotiate another one.
    machine.give_up();
    assert!(!machine.is_over());
    machine.receive(RELAY, &[23, 3, 3, 0, 0], now + RENEWAL).unwrap();
    assert_eq!((machine.need(), machine.has_relay()), (Need::Nothing, true));
    let events = std::iter::from_fn(|| machine.poll_event());
    assert_eq!(events.collect::<Vec<_>>(), []);
    // A new leg takes the place of one that still does not answer.
    machine.renew();
    machine.handle_network(&[], now);
    machine.handle_deadline(now + SILENCE);
    assert!(machine.install(LATER, now));
    assert_eq!((machine.need(), machine.current()), (Need::Nothing, LATER));
    assert_eq!(machine.poll_event(), Some(Event::Closed(RELAY)));
    // A direct connection that does not answer either is lost before.
    assert!(machine.install(1, now));
    machine.handle_network(&[], now);
    machine.handle_deadline(now + LONGEST_SILENCE);
    assert_eq!((machine.need(), machine.current()), (Need::Better, LATER));
    // If it breaks, the part that negotiates legs hears of it, even after all attempts have failed.
    machine.handle_loss(LATER, now);
    assert_eq!((machine.need(), machine.is_over()), (Need::Path, false));
    // What had that address is lost at once.
    let (mut machine, now) = sent();
    machine.renew();
    machine.handle_network(&[RELAY], now);
    assert!(machine.is_stranded());
}

/// A NAT may have forgotten the relay's connection while the direct one was in use. The kernel notices it if it has to deliver something.
#[test]
fn the_relay_is_asked_for_a_sign_of_life_when_the_stream_returns() {
    let (mut machine, now) = sent();
    assert!(machine.install(1, now));
    machine.handle_loss(1, now);
    let (mut out, mut ping) = (Vec::new(), Vec::new());
    machine.transmit(RELAY, now, &mut out);
    Control::Ping(2).put(&mut ping);
    assert!(out.windows(ping.len()).any(|some| some == ping), "no ping: {out:?}");
    // It is slow, or the other end sleeps.
    machine.handle_deadline(now + RENEWAL);
    assert_eq!((machine.need(), machine.current()), (Need::Nothing, RELAY));
}

/// The component may be away for a while, and a new path cannot be had without it.
#[test]
fn a_direct_path_without_a_relay_beside_it_outlives_a_short_cut() {
    let (mut machine, now) = sent();
    machine.renew();
    assert!(machine.install(1, now));
    machine.handle_loss(RELAY, now);
    machine.transmit(1, now, &mut Vec::new());
    machine.handle_deadline(now + LONGEST_SILENCE - SILENCE);
    assert_eq!((machine.need(), machine.current()), (Need::Relay, 1));
    // With a new leg of the relay, there is another way at once.
    assert!(machine.install(LATER, now));
    machine.handle_deadline(now + LONGEST_SILENCE - SILENCE);
    assert_eq!((machine.need(), machine.current()), (Need::Nothing, LATER));
}

#[test]
fn a_path_whose_address_is_gone_stays_if_the_stream_could_not_go_on_without_it() {
    let (mut machine, now) = sent();
    machine.handle_network(&[RELAY], now);
    assert!(!machine.is_over() && machine.has_relay());
    // Of two paths one is enough.
    assert!(machine.install(1, now));
    machine.handle_network(&[RELAY, 1], now);
    assert!(!machine.is_over() && machine.has_path());
}

#[test]
fn a_stream_that_nobody_reads_any_more_does_not_keep_the_processor_busy() {
    let start = Instant::now();
    let mut machine = Machine::new(Role::Follows, start);
    machine.open(start);
    assert!(machine.install(1, start));
    machine.transmit(1, start, &mut Vec::new());
    let mut bytes = Vec::new();
    Control::Pong(1).put(&mut bytes);
    Control::From(0).put(&mut bytes);
    bytes.extend([23, 3, 3, 0, 2, 7, 7]);
    machine.receive(1, &bytes, start).unwrap();
    machine.discard();
    let (mut now, mut calls) = (start, 0);
    while let Some(deadline) = machine.deadline().filter(|at| *at < start + IDLE_DIRECT) {
        now = now.max(deadline);
        machine.handle_deadline(now);
        for number in [RELAY, 1] {
            machine.transmit(number, now, &mut Vec::new());
        }
        calls += 1;
        assert!(calls < 5, "it is called again and again");
    }
    assert_eq!(machine.current(), 1);
}

#[test]
fn a_direct_connection_can_replace_one_that_is_the_only_path() {
    let (mut machine, now) = sent();
    assert!(machine.install(1, now));
    machine.handle_loss(RELAY, now);
    let mut out = Vec::new();
    machine.transmit(1, now, &mut out);
    assert!(machine.install(2, now));
    assert_eq!((machine.current(), machine.is_over()), (2, false));
    // Everything that was not acknowledged, from its first record on.
    let mut wanted = Vec::new();
    out.clear();
    machine.transmit(2, now, &mut out);
    Control::From(0).put(&mut wanted);
    wanted.extend([23, 3, 3, 0, 2, 7, 7]);
    assert!(out.ends_with(&wanted), "{out:?}");
}

#[test]
fn a_ping_is_answered_once_the_peer_is_verified() {
    let mut machine = Machine::new(Role::Chooses, Instant::now());
    let now = Instant::now();
    assert_eq!(told(&mut machine, &[Control::Ping(7)], now), None);
    let mut out = Vec::new();
    machine.transmit(RELAY, now, &mut out);
    assert!(out.is_empty());
    machine.open(now);
    machine.transmit(RELAY, now, &mut out);
    let mut wanted = Vec::new();
    Control::Pong(7).put(&mut wanted);
    assert!(out.starts_with(&wanted), "{out:?}");
}

/// The stall of a stream with a relay that works ends with the patience.
#[test]
fn a_silent_path_beside_the_relay_is_given_up_soon_whatever_its_round_trips_were() {
    for has_relay in [true, false] {
        let (mut machine, now) = sent();
        machine.renew();
        assert!(machine.install(1, now));
        machine.path(1).unwrap().measure(Duration::from_secs(5));
        if !has_relay {
            machine.handle_loss(RELAY, now);
        }
        machine.write(&[23, 3, 3, 0, 2, 7, 7]).unwrap();
        machine.transmit(1, now, &mut Vec::new());
        let longest = if has_relay { LONGEST_BESIDE } else { LONGEST_SILENCE };
        machine.handle_deadline(now + longest - Duration::from_millis(1));
        assert!(machine.path(1).is_some(), "{has_relay}");
        machine.handle_deadline(now + longest);
        assert!(machine.path(1).is_none(), "{has_relay}");
    }
}

/// A ping that crosses an outage takes as long as the outage.
#[test]
fn one_long_round_trip_among_short_ones_counts_little() {
    let mut path = super::Path::new(1, Instant::now());
    let millis = Duration::from_millis;
    path.measure(millis(400));
    assert_eq!(path.round_trip, Some(millis(400)));
    path.measure(millis(40));
    path.measure(millis(840));
    assert_eq!(path.round_trip, Some(millis(140)));
    for _ in 0..30 {
        path.measure(millis(840));
    }
    assert!(path.round_trip.unwrap() > millis(800));
    path.measure(millis(40));
    assert_eq!(path.round_trip, Some(millis(40)));
}
