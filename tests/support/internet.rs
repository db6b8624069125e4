//! A server and a component in a public network, and two users' machines, each behind a NAT.

use std::{fs::File, process::Command};

use super::{
    PATIENCE,
    netns::{Nat, Place, TwoNats},
    process::{Process, read},
    programs::{Component, Options, Xtls, event, events, page},
    servers::Server,
    wait_for,
};

/// The networks, what runs in the public one, and the users.
pub struct Internet {
    // Dropped in this order: the networks last.
    /// On host A.
    pub alice: Xtls,
    /// On host B.
    pub bob: Xtls,
    /// In the public network.
    pub component: Component,
    /// In the public network.
    pub server: Server,
    /// All of it.
    pub networks: TwoNats,
    /// Where the component is.
    place: Place,
    /// The port of its pages.
    pages: u16,
}

impl Internet {
    /// Starts a component with these options at a server, which `start` starts at the address that it is given, and
    /// registers a key for each of both users. `place` is the component's: [`Place::Public`], with the server, or
    /// [`Place::Component`].
    ///
    /// # Panics
    /// If the kernel does not permit it: it needs root.
    pub fn start(
        nats: [Nat; 2],
        place: Place,
        start: impl FnOnce(&str) -> Server + Send,
        options: impl FnOnce(&TwoNats, &Server) -> Options + Send,
    ) -> Self {
        let networks = TwoNats::start(nats[0], nats[1]);
        let address = TwoNats::SERVERS.to_string();
        let server = networks.inside(Place::Public, || start(&address));
        if place == Place::Component {
            networks.add_component();
        }
        // The port that it finds free is one of this process, whichever the namespace.
        let options = networks.inside(Place::Public, || options(&networks, &server));
        let (mut options, pages) = options.with_pages();
        if place == Place::Component {
            options.address = Some(TwoNats::COMPONENT.to_string());
            options.network = Some(networks.name(place));
        } else {
            options.address = Some(address.clone());
        }
        let component = networks.inside(Place::Public, || Component::start(&server, &options));
        let clients = format!("{address}:{}", server.client_port());
        let [alice, bob] = [("alice", Place::HostA), ("bob", Place::HostB)].map(|(user, host)| {
            Xtls::login_inside(&server, user, &networks.name(host), &clients).and_key()
        });
        Self { alice, bob, component, server, networks, place, pages }
    }

    /// Returns one of the component's counters; the sum, if it has labels.
    pub fn counted(&self, name: &str) -> u64 {
        let page = self.networks.inside(self.place, || page(self.pages, "/metrics"));
        let name = format!("fingerpost_{name}");
        let values = page.iter().flat_map(|page| page.lines()).filter_map(|line| {
            let rest = line.strip_prefix(&name)?;
            (rest.starts_with([' ', '{'])).then(|| rest.rsplit(' ').next()?.parse::<u64>().ok())?
        });
        values.sum()
    }

    /// Begins a pipe between the two users, and waits until it is secured on both sides. `more`: the arguments of both
    /// sides, and of each.
    pub fn pipe(&self, more: &[&str], of: [&[&str]; 2]) -> Pipe {
        self.clean();
        self.pipe_into(more, of)
    }

    /// Removes the files of the last pipe.
    pub fn clean(&self) {
        for user in [&self.alice, &self.bob] {
            for name in ["in", "out", "pipe.log"] {
                let _old = std::fs::remove_file(user.home().join(name));
            }
        }
    }

    /// The same as [`pipe`](Self::pipe), into the outputs that there are.
    pub fn pipe_into(&self, more: &[&str], of: [&[&str]; 2]) -> Pipe {
        let held = [&self.alice, &self.bob].map(|user| {
            let fifo = user.home().join("in");
            assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
            File::options().read(true).write(true).open(fifo).unwrap()
        });
        let args = [&["pipe", "--listen", "--json"], more, of[1]].concat();
        let listener = self.bob.start_between(args, "in", "out");
        let listening = || event(&listener.log(), "listening").is_some();
        wait_for("listening", PATIENCE, || listener.log(), listening);
        let jid = event(&listener.log(), "listening").unwrap()["jid"].as_str().unwrap().to_owned();
        let args = [&["pipe", &jid, "--json"], more, of[0]].concat();
        let dialler = self.alice.start_between(args, "in", "out");
        let outputs = [&self.alice, &self.bob].map(|user| user.home().join("out"));
        let pipe = Pipe { ends: [dialler, listener], held: held.map(Some), outputs };
        for end in &pipe.ends {
            let secured = || event(&end.log(), "secured").is_some();
            wait_for("a secured pipe", PATIENCE, || self.logs(&pipe), secured);
        }
        pipe
    }

    /// Returns what both ends and the component have logged.
    pub fn logs(&self, pipe: &Pipe) -> String {
        pipe.ends.iter().map(Process::log).collect::<String>() + &self.component.log()
    }
}

/// A pipe whose inputs are open.
pub struct Pipe {
    /// Alice's end and bob's.
    pub ends: [Process; 2],
    held: [Option<File>; 2],
    outputs: [std::path::PathBuf; 2],
}

impl Pipe {
    /// Writes to the input of each end, and waits until both texts have come out at the other one.
    pub fn exchange(&mut self, texts: [&str; 2]) {
        use std::io::Write;
        for (input, text) in self.held.iter_mut().flatten().zip(texts) {
            input.write_all(text.as_bytes()).unwrap();
        }
        let [at_alice, at_bob] = &self.outputs;
        let came = || read(at_alice).ends_with(texts[1]) && read(at_bob).ends_with(texts[0]);
        wait_for(
            "what was written",
            PATIENCE,
            || self.ends.iter().map(Process::log).collect(),
            came,
        );
    }

    /// Waits until both ends are on a direct path; returns the addresses that they tell.
    pub fn wait_until_direct(&self, logs: impl Fn() -> String) -> [String; 2] {
        let paths = || {
            self.ends.each_ref().map(|end| {
                let mut told = events(&end.log(), "path").into_iter();
                let path = told.find(|path| path["path"] == "direct")?;
                path["address"].as_str().map(str::to_owned)
            })
        };
        wait_for("the direct path", PATIENCE, logs, || paths().iter().all(Option::is_some));
        paths().map(Option::unwrap)
    }

    /// Returns the input of alice's end, for another thread.
    pub fn input(&self) -> File {
        self.held[0].as_ref().unwrap().try_clone().unwrap()
    }

    /// Returns what has come out at bob's end.
    pub fn output(&self) -> &std::path::Path {
        &self.outputs[1]
    }

    /// Ends both inputs, and waits for the programs, which must end well. Returns them.
    pub fn finish(mut self) -> [Process; 2] {
        self.held = [None, None];
        for end in &mut self.ends {
            let status = end.wait(PATIENCE);
            assert_eq!(status.code(), Some(0), "{}", end.log());
        }
        self.ends
    }
}
