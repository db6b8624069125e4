//! Calls of the C interface in any order with any arguments that C can pass: each is answered with a code and a sentence.
//!
//! The inputs are the same in each run. `random_calls_with_real_objects` needs a server, and runs as a part of
//! tests/test_examples.py.

#![expect(clippy::unwrap_used, unsafe_code, reason = "a program in C has no other way to call")]

use std::{
    cell::Cell,
    collections::HashMap,
    env,
    ffi::{CStr, CString, c_char, c_int},
    ptr, thread,
};

use fingerpost_c::*;
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, RngSeed, TestRunner},
};

use fingerpost_code as Code;

/// The most bytes that wait for the echo: fewer than the two sides hold, so that no write waits for a read.
const PENDING: usize = 1 << 17;

/// A text from C: NULL, or any bytes.
type Text = Option<CString>;

#[derive(Clone, Debug)]
enum Call {
    Login {
        texts: Vec<Text>,
        size: usize,
        reconnect: c_int,
    },
    LoginForReal,
    Register(Text),
    Listen,
    Connect(Text),
    ConnectForReal,
    Next(c_int),
    Peer(usize),
    Accept,
    Decline(Text),
    Read(usize),
    Write(usize),
    End,
    Info(c_int, usize),
    Sas(usize),
    Close,
    Abort,
    CloseEndpoint,
    Jid(usize),
    Fingerprint(usize),
    /// The results are NULL.
    Nowhere,
}

fn text() -> impl Strategy<Value = Text> {
    let bytes = prop_oneof![
        "[a-z]{1,8}@[a-z]{1,8}(/[a-z]{1,4})?".prop_map(String::into_bytes),
        "\\PC{0,40}".prop_map(String::into_bytes),
        vec(1..=255_u8, 0..40),
        (1000..5000_usize).prop_map(|n| vec![b'a'; n]),
    ];
    let text = bytes.prop_map(|mut bytes| {
        bytes.retain(|byte| *byte != 0);
        CString::new(bytes).unwrap()
    });
    prop_oneof![1 => Just(None), 6 => text.prop_map(Some)]
}

fn call(live: bool) -> impl Strategy<Value = Call> {
    let (real, bytes) = if live { (4, 16) } else { (1, 4) };
    let size = || prop_oneof![Just(0), 1..16_usize, Just(4096)];
    let right = size_of::<fingerpost_settings>();
    prop_oneof![
        1 => (vec(text(), 10), prop_oneof![4 => Just(right), 1 => any::<usize>()], any::<c_int>())
            .prop_map(|(texts, size, reconnect)| Call::Login { texts, size, reconnect }),
        real => Just(Call::LoginForReal),
        real => Just(Call::ConnectForReal),
        1 => text().prop_map(Call::Register),
        1 => Just(Call::Listen),
        1 => text().prop_map(Call::Connect),
        1 => (0..3).prop_map(Call::Next),
        1 => size().prop_map(Call::Peer),
        1 => Just(Call::Accept),
        1 => text().prop_map(Call::Decline),
        bytes => size().prop_map(Call::Read),
        bytes => (0..70_000_usize).prop_map(Call::Write),
        2 => Just(Call::End),
        2 => (-2..13_i32, size()).prop_map(|(what, size)| Call::Info(what, size)),
        1 => size().prop_map(Call::Sas),
        2 => Just(Call::Close),
        1 => Just(Call::Abort),
        1 => Just(Call::CloseEndpoint),
        1 => size().prop_map(Call::Jid),
        1 => size().prop_map(Call::Fingerprint),
        1 => Just(Call::Nowhere),
    ]
}

fn address(text: &Text) -> *const c_char {
    text.as_ref().map_or(ptr::null(), |text| text.as_ptr())
}

/// Checks the last error against the code of a call.
fn checked(code: Code) -> Code {
    assert_ne!(code, Code::FINGERPOST_PANIC, "{}", sentence());
    if code != Code::FINGERPOST_OK {
        // SAFETY: the last error is valid until the next failure of this thread.
        let last = unsafe { fingerpost_last_error().as_ref() }.unwrap();
        assert_eq!(last.code, code);
        assert!(!sentence().is_empty());
    }
    code
}

fn sentence() -> String {
    // SAFETY: as above; the message ends with NUL.
    unsafe {
        let last = fingerpost_last_error().as_ref().unwrap();
        CStr::from_ptr(last.message).to_str().unwrap().to_owned()
    }
}

/// The accounts of a server: who calls, and who echoes.
#[derive(Clone, Debug)]
struct Accounts([CString; 8]);

impl Accounts {
    /// Reads alice, bob, password, component, server, CA file, and the directories of both keys.
    fn of_environment() -> Self {
        let texts = env::var("FINGERPOST_ACCOUNTS").expect("tests/test_examples.py runs this test");
        let texts: Vec<CString> =
            texts.split('|').map(|text| CString::new(text).unwrap()).collect();
        Self(texts.try_into().unwrap())
    }

    /// Accounts of a server that does not exist.
    fn nowhere() -> Self {
        Self([
            c"alice@example.test".into(),
            c"bob@example.test".into(),
            c"pw".into(),
            c"xtls.example.test".into(),
            c"127.0.0.1:1".into(),
            c"/dev/null".into(),
            c"".into(),
            c"".into(),
        ])
    }

    fn login(&self, who: usize) -> Result<fingerpost_endpoint, Code> {
        let Self(texts) = self;
        let settings = fingerpost_settings {
            jid: texts[who].as_ptr(),
            password: texts[2].as_ptr(),
            component: texts[3].as_ptr(),
            server: texts[4].as_ptr(),
            ca_file: texts[5].as_ptr(),
            identity: Some(&texts[6 + who])
                .filter(|path| !path.is_empty())
                .map_or(ptr::null(), |path| path.as_ptr()),
            trust: c"first-use".as_ptr(),
            ..nothing()
        };
        let mut endpoint = 0;
        // SAFETY: the texts and the place are valid.
        match checked(unsafe { fingerpost_login(&raw const settings, &raw mut endpoint) }) {
            Code::FINGERPOST_OK => Ok(endpoint),
            code => Err(code),
        }
    }
}

fn nothing() -> fingerpost_settings {
    fingerpost_settings {
        size: size_of::<fingerpost_settings>(),
        jid: ptr::null(),
        password: ptr::null(),
        component: ptr::null(),
        server: ptr::null(),
        ca_file: ptr::null(),
        identity: ptr::null(),
        trust: ptr::null(),
        known_peer: ptr::null(),
        known_fingerprint: ptr::null(),
        transport: ptr::null(),
        reconnect: 0,
    }
}

/// Sends back what each peer sends, until the endpoint is closed.
fn echo(endpoint: fingerpost_endpoint) {
    let mut threads = Vec::new();
    loop {
        let mut request = 0;
        // SAFETY: the place is valid.
        if unsafe { fingerpost_next(endpoint, -1, &raw mut request) } != Code::FINGERPOST_OK {
            break;
        }
        threads.push(thread::spawn(move || {
            let (mut stream, mut buffer, mut length) = (0, vec![0_u8; 1 << 16], 0);
            // SAFETY: the place is valid.
            if unsafe { fingerpost_accept(request, &raw mut stream) } != Code::FINGERPOST_OK {
                return;
            }
            let (place, size) = (buffer.as_mut_ptr().cast(), buffer.len());
            loop {
                // SAFETY: the buffer has so many bytes.
                let read = unsafe { fingerpost_read(stream, place, size, &raw mut length) };
                // SAFETY: the same.
                if read != Code::FINGERPOST_OK
                    || length == 0
                    || unsafe { fingerpost_write(stream, place, length) } != Code::FINGERPOST_OK
                {
                    break;
                }
            }
            checked(fingerpost_stream_close(stream));
            assert_eq!(checked(fingerpost_stream_close(stream)), Code::FINGERPOST_HANDLE);
        }));
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

/// How many calls have worked that need a server.
#[derive(Debug, Default)]
struct Worked {
    connects: Cell<usize>,
    reads: Cell<usize>,
}

fn count(of: &Cell<usize>) {
    of.set(of.get() + 1);
}

/// What the test knows of the numbers.
struct Model<'a> {
    accounts: &'a Accounts,
    worked: &'a Worked,
    numbers: Vec<u64>,
    /// Those of logins.
    endpoints: Vec<u64>,
    /// Open streams: how many bytes come back, and whether this side has ended.
    streams: HashMap<u64, (usize, bool)>,
}

impl Model<'_> {
    /// Returns a number for the call: mostly one that fits, if there is one.
    fn number(&self, call: &Call, pick: usize) -> u64 {
        let mut fitting: Vec<u64> = match call {
            _ if pick.is_multiple_of(4) => Vec::new(),
            Call::Read(_) => {
                let readable = |(_, (waits, ended)): &(_, &(usize, bool))| *waits > 0 || *ended;
                self.streams.iter().filter(readable).map(|(number, _)| *number).collect()
            }
            Call::Write(_)
            | Call::End
            | Call::Info(..)
            | Call::Sas(_)
            | Call::Close
            | Call::Abort => self.streams.keys().copied().collect(),
            _ => self.endpoints.clone(),
        };
        if fitting.is_empty() {
            fitting.clone_from(&self.numbers);
        }
        fitting.sort_unstable();
        fitting[pick / 4 % fitting.len()]
    }

    fn run(&mut self, call: &Call, pick: usize) {
        let number = self.number(call, pick);
        let mut buffer = vec![0_u8; 4096];
        let (place, bytes) = (buffer.as_mut_ptr().cast::<c_char>(), buffer.as_mut_ptr());
        let mut made = u64::MAX;
        let out = &raw mut made;
        // SAFETY: each address is NULL or valid for the size that is passed with it, and each text ends with NUL.
        let code = unsafe {
            match call {
                Call::Login { texts, size, reconnect } => {
                    let texts: Vec<*const c_char> = texts.iter().map(address).collect();
                    let settings = fingerpost_settings {
                        size: *size,
                        jid: texts[0],
                        password: texts[1],
                        component: texts[2],
                        // Any other one would be a server on the network.
                        server: c"127.0.0.1:1".as_ptr(),
                        ca_file: texts[4],
                        identity: ptr::null(),
                        trust: texts[6],
                        known_peer: texts[7],
                        known_fingerprint: texts[8],
                        transport: texts[9],
                        reconnect: *reconnect,
                    };
                    fingerpost_login(&raw const settings, out)
                }
                Call::LoginForReal => match self.accounts.login(0) {
                    Ok(endpoint) => {
                        made = endpoint;
                        self.endpoints.push(endpoint);
                        Code::FINGERPOST_OK
                    }
                    Err(code) => {
                        made = 0;
                        code
                    }
                },
                Call::Register(text) => fingerpost_register(number, address(text)),
                Call::Listen => fingerpost_listen(number),
                Call::Connect(text) => fingerpost_connect(number, address(text), out),
                Call::ConnectForReal => {
                    let code = fingerpost_connect(number, self.accounts.0[1].as_ptr(), out);
                    if code == Code::FINGERPOST_OK {
                        count(&self.worked.connects);
                        self.streams.insert(made, (0, false));
                    }
                    code
                }
                Call::Next(limit) => fingerpost_next(number, *limit, out),
                Call::Peer(size) => fingerpost_request_peer(number, place, *size),
                Call::Accept => fingerpost_accept(number, out),
                Call::Decline(text) => fingerpost_decline(number, address(text)),
                Call::Read(size) => {
                    if let Some((0, false)) = self.streams.get(&number) {
                        // It would wait without end.
                        return;
                    }
                    let mut length = usize::MAX;
                    let code = fingerpost_read(number, bytes.cast(), *size, &raw mut length);
                    if let (Code::FINGERPOST_OK, Some((pending, ended))) =
                        (code, self.streams.get_mut(&number))
                    {
                        assert!(length <= *pending);
                        assert!(length > 0 || (*ended && *pending == 0));
                        *pending -= length;
                        count(&self.worked.reads);
                    }
                    code
                }
                Call::Write(size) => {
                    if self.streams.get(&number).is_some_and(|(waits, _)| waits + size > PENDING) {
                        return;
                    }
                    let content = vec![7_u8; *size];
                    let code = fingerpost_write(number, content.as_ptr().cast(), *size);
                    if let (Code::FINGERPOST_OK, Some((pending, ended))) =
                        (code, self.streams.get_mut(&number))
                    {
                        assert!(!*ended);
                        *pending += size;
                    }
                    code
                }
                Call::End => {
                    let code = fingerpost_end(number);
                    if let (Code::FINGERPOST_OK, Some((_, ended))) =
                        (code, self.streams.get_mut(&number))
                    {
                        *ended = true;
                    }
                    code
                }
                Call::Info(what, size) => fingerpost_stream_info(number, *what, place, *size),
                Call::Sas(size) => fingerpost_stream_sas(number, place, *size),
                Call::Close | Call::Abort => {
                    let was_open = self.streams.remove(&number).is_some();
                    let code = match call {
                        Call::Close => fingerpost_stream_close(number),
                        _ => fingerpost_stream_abort(number),
                    };
                    assert_eq!(code == Code::FINGERPOST_HANDLE, !was_open, "{}", sentence());
                    assert_eq!(fingerpost_stream_close(number), Code::FINGERPOST_HANDLE);
                    code_of_last_or(code)
                }
                Call::CloseEndpoint => fingerpost_endpoint_close(number),
                Call::Jid(size) => fingerpost_endpoint_jid(number, place, *size),
                Call::Fingerprint(size) => fingerpost_endpoint_fingerprint(number, place, *size),
                Call::Nowhere => {
                    for code in [
                        fingerpost_login(ptr::null(), out),
                        fingerpost_login(ptr::null(), ptr::null_mut()),
                        fingerpost_connect(number, c"a@b".as_ptr(), ptr::null_mut()),
                        fingerpost_next(number, 0, ptr::null_mut()),
                        fingerpost_accept(number, ptr::null_mut()),
                        fingerpost_read(number, ptr::null_mut(), 1, ptr::null_mut()),
                        fingerpost_read(number, ptr::null_mut(), 1, (&raw mut made).cast()),
                        fingerpost_write(number, ptr::null(), 1),
                        fingerpost_write(number, bytes.cast(), usize::MAX),
                    ] {
                        assert!(matches!(
                            checked(code),
                            Code::FINGERPOST_ARGUMENT | Code::FINGERPOST_HANDLE
                        ));
                    }
                    fingerpost_stream_info(number, 0, ptr::null_mut(), 10)
                }
            }
        };
        checked(code);
        if code == Code::FINGERPOST_OK {
            if made != u64::MAX {
                assert!(made != 0 && !self.numbers.contains(&made), "{made} was given out before");
                self.numbers.push(made);
            }
        } else {
            assert!(made == 0 || made == u64::MAX, "{call:?} gives {made}");
        }
    }
}

/// The second close above has failed last.
fn code_of_last_or(code: Code) -> Code {
    if code == Code::FINGERPOST_OK { code } else { Code::FINGERPOST_HANDLE }
}

fn run(cases: u32, live: bool, accounts: &Accounts) -> Worked {
    let worked = Worked::default();
    let config = Config {
        cases,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..Config::default()
    };
    let calls = vec((call(live), any::<usize>()), 1..60);
    TestRunner::new(config)
        .run(&calls, |calls| {
            let numbers = vec![0, 1 << 40, u64::MAX];
            let mut model = Model {
                accounts,
                worked: &worked,
                numbers,
                endpoints: Vec::new(),
                streams: HashMap::new(),
            };
            if live {
                model.run(&Call::LoginForReal, 1);
                model.run(&Call::ConnectForReal, 1);
            }
            for (call, pick) in &calls {
                model.run(call, *pick);
            }
            for number in &model.numbers {
                if model.streams.contains_key(number) {
                    assert_eq!(checked(fingerpost_stream_close(*number)), Code::FINGERPOST_OK);
                }
                checked(fingerpost_endpoint_close(*number));
                assert_eq!(checked(fingerpost_endpoint_close(*number)), Code::FINGERPOST_HANDLE);
            }
            Ok(())
        })
        .unwrap();
    worked
}

#[test]
fn random_calls_are_answered() {
    let worked = run(300, false, &Accounts::nowhere());
    assert_eq!(worked.connects.get(), 0);
}

#[test]
#[ignore = "needs a server: tests/test_examples.py runs it"]
fn random_calls_with_real_objects() {
    let accounts = Accounts::of_environment();
    let bob = accounts.login(1).unwrap();
    // SAFETY: the text is valid.
    assert_eq!(unsafe { fingerpost_register(bob, c"echo".as_ptr()) }, Code::FINGERPOST_OK);
    assert_eq!(fingerpost_listen(bob), Code::FINGERPOST_OK);
    let service = thread::spawn(move || echo(bob));
    // It knows alice by one key only.
    let worked = run(40, true, &accounts);
    assert!(worked.connects.get() > 20 && worked.reads.get() > 20, "{worked:?}");
    assert_eq!(checked(fingerpost_endpoint_close(bob)), Code::FINGERPOST_OK);
    service.join().unwrap();
}
