//! Parts of docs/BENCHMARKS.md and docs/INTEROP.md, each rewritten by what measures it.

use std::process::Command;

use super::root;

/// Writes a part, with the machine on which it was measured, between its marks; adds a part that does not exist.
pub fn write(mark: &str, title: &str, text: &str) {
    let path = root().join("docs/BENCHMARKS.md");
    let head = "# Benchmarks\n\nMeasured by `make bench`, which writes this page. Figures are of one machine and one run.\n";
    let old = std::fs::read_to_string(&path).unwrap_or_else(|_| head.to_owned());
    let (begin, end) = (format!("<!-- {mark} -->"), format!("<!-- end of {mark} -->"));
    let part = format!("{begin}\n## {title}\n\n{}\n\n{}\n{end}", machine(), text.trim_end());
    let new = match (old.find(&begin), old.find(&end)) {
        (Some(from), Some(to)) => format!("{}{part}{}", &old[..from], &old[to + end.len()..]),
        _ => format!("{}\n\n{part}\n", old.trim_end()),
    };
    std::fs::write(path, new).unwrap();
}

/// Writes a part of docs/INTEROP.md between its marks.
///
/// # Panics
/// If the page does not have the marks.
pub fn write_interop(mark: &str, text: &str) {
    let path = root().join("docs/INTEROP.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = (format!("<!-- {mark} -->\n"), format!("<!-- end of {mark} -->"));
    let from = page.find(&begin).expect("the page has the part") + begin.len();
    let to = page.find(&end).expect("the part has an end");
    std::fs::write(path, format!("{}{}\n{}", &page[..from], text.trim_end(), &page[to..])).unwrap();
}

/// Returns the machine and the versions in one line.
fn machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .and_then(|line| line.split_once(':'))
        .map_or("unknown CPU", |(_, model)| model.trim());
    let said = |program: &str, args: &[&str]| {
        Command::new(program)
            .args(args)
            .output()
            .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
            .unwrap_or_default()
    };
    format!(
        "{cpus} × {model}, Linux {}, {}.",
        // Without the suffix of the distribution.
        said("uname", &["-r"]).split('-').next().unwrap_or_default(),
        said("rustc", &["--version"])
    )
}
