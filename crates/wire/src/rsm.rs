//! Result set management (XEP-0059): long answers in pages.
//!
//! A [`PageRequest`] names the requested page, and [`Page`] collects its items until it has the requested number or a
//! stanza is full. A user that requests no page gets the whole answer if it fits, without a `<set/>`; otherwise the
//! first page, with a `<set/>` that says how many items there are.
//!
//! Every item has a name (UID) that stays the same while it exists, and the order of items never changes: new items
//! come last. So a client that follows the pages gets each item once.
//!
//! Spec: XEP-0059 1.1, section 2.

use std::{collections::VecDeque, ops::Range};

use minidom::Element;

use super::{ns, size, stanza::Refusal, xml};

/// The size of a `<set/>` besides the names in it.
const FRAME: usize = 200;

/// The position of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
enum PagePlace {
    /// At the beginning.
    First,
    /// After the item of this name.
    After(String),
    /// The page that ends before the item of this name.
    Before(String),
    /// The last page.
    Last,
    /// The page that begins at this number, counted from 0.
    Index(usize),
}

/// The page that a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    max: Option<usize>,
    place: PagePlace,
}

impl PageRequest {
    /// Reads the `<set/>` in a request's payload, if there is one.
    ///
    /// # Errors
    /// `bad-request` for values that are not numbers, and for two positions at once.
    pub fn read(payload: &Element) -> Result<Option<Self>, Refusal> {
        let Some(set) = payload.get_child("set", ns::RSM) else { return Ok(None) };
        let text =
            |name: &str| set.get_child(name, ns::RSM).map(|child| child.text().trim().to_owned());
        let number = |name: &'static str| match text(name) {
            None => Ok(None),
            Some(text) => text.parse::<usize>().map(Some).map_err(|_| {
                Refusal::bad_request(format!("{name} must be a whole number that is not negative"))
            }),
        };
        let max = number("max")?;
        let mut places = Vec::new();
        // An empty `after` means the first page: some clients request it like this.
        places.extend(text("after").filter(|uid| !uid.is_empty()).map(PagePlace::After));
        places.extend(text("before").map(|uid| match uid.as_str() {
            "" => PagePlace::Last,
            _ => PagePlace::Before(uid),
        }));
        places.extend(number("index")?.map(PagePlace::Index));
        if places.len() > 1 {
            return Err(Refusal::bad_request("Expected only one of after, before and index"));
        }
        Ok(Some(Self { max, place: places.pop().unwrap_or(PagePlace::First) }))
    }

    /// Returns the request for the page after the item of this name.
    pub fn after(uid: &str) -> Self {
        Self { max: None, place: PagePlace::After(uid.to_owned()) }
    }

    /// Returns the request for the page that begins at this number.
    pub fn index(index: usize) -> Self {
        Self { max: None, place: PagePlace::Index(index) }
    }

    /// Returns the same request with a limit of items.
    pub fn at_most(self, max: usize) -> Self {
        Self { max: Some(self.max.map_or(max, |own| own.min(max))), ..self }
    }

    /// Returns the name whose position [`Page::new`] needs, if any.
    pub fn uid(&self) -> Option<&str> {
        match &self.place {
            PagePlace::After(uid) | PagePlace::Before(uid) => Some(uid),
            PagePlace::First | PagePlace::Last | PagePlace::Index(_) => None,
        }
    }
}

/// Collects the items of one page.
///
/// Ask [`Page::wants`] for the next item and give it to [`Page::offer`], until there is none; then call
/// [`Page::finish`].
#[derive(Debug)]
pub struct Page<T> {
    count: usize,
    /// Numbers of the items that may still be taken.
    left: Range<usize>,
    backwards: bool,
    /// Whether the user requested a page: then the answer has a `<set/>` in any case.
    asked: bool,
    /// The number of the first item that was taken.
    first: usize,
    taken: VecDeque<(String, T)>,
    /// How many of them fit together with a `<set/>`.
    fitting: usize,
    room: usize,
    used: usize,
    full: bool,
}

impl<T> Page<T> {
    /// Returns a page of `count` items that may take `room` bytes in all. `position` is the number of the item that the
    /// request names, if it exists.
    ///
    /// # Errors
    /// `item-not-found` if it does not exist.
    pub fn new(
        request: Option<&PageRequest>,
        count: usize,
        position: Option<usize>,
        room: usize,
    ) -> Result<Self, Refusal> {
        let place = request.map_or(&PagePlace::First, |request| &request.place);
        let max = request.and_then(|request| request.max).unwrap_or(usize::MAX);
        let named = || {
            let none = "The item no longer exists: begin with the first page again";
            position.ok_or_else(|| Refusal::item_not_found(none))
        };
        let (start, end, backwards) = match place {
            PagePlace::First => (0, count, false),
            PagePlace::After(_) => (named()? + 1, count, false),
            PagePlace::Index(index) => (*index, count, false),
            PagePlace::Before(_) => (0, named()?, true),
            PagePlace::Last => (0, count, true),
        };
        let start = start.min(end);
        let left = if backwards {
            end.saturating_sub(max).max(start)..end
        } else {
            start..start.saturating_add(max).min(end)
        };
        Ok(Self {
            count,
            first: left.start,
            left,
            backwards,
            asked: request.is_some(),
            taken: VecDeque::new(),
            fitting: 0,
            room,
            used: 0,
            full: false,
        })
    }

    /// Returns the number of the item to offer next.
    pub fn wants(&self) -> Option<usize> {
        if self.full || self.left.is_empty() {
            return None;
        }
        Some(if self.backwards { self.left.end - 1 } else { self.left.start })
    }

    /// Takes the next item if there is room for its `size` bytes.
    ///
    /// # Errors
    /// `policy-violation` if not even one item fits.
    pub fn offer(&mut self, uid: String, size: usize, item: T) -> Result<(), Refusal> {
        let used = self.used.saturating_add(size);
        let mut ends = self.taken.iter().map(|(uid, _)| uid.len());
        let (a, b) = if self.backwards {
            (uid.len(), ends.next_back().unwrap_or(uid.len()))
        } else {
            (ends.next().unwrap_or(uid.len()), uid.len())
        };
        let with_set = used.saturating_add(FRAME + a + b);
        let is_whole = !self.asked && used <= self.room;
        if with_set > self.room && !is_whole {
            self.full = true;
            if self.fitting == 0 {
                let text = format!(
                    "One item of the answer is {size} bytes long; {} are left for it in a stanza",
                    self.room.saturating_sub(FRAME + a + b)
                );
                return Err(size::too_big(text));
            }
            return Ok(());
        }
        self.used = used;
        if self.backwards {
            self.left.end -= 1;
            self.taken.push_front((uid, item));
        } else {
            self.left.start += 1;
            self.taken.push_back((uid, item));
        }
        if with_set <= self.room {
            self.fitting = self.taken.len();
        }
        Ok(())
    }

    /// Returns the items of the page, and their `<set/>`, if the answer needs one.
    pub fn finish(mut self) -> (Vec<T>, Option<Element>) {
        let is_whole = self.taken.len() == self.count;
        if self.count == 0 || is_whole && !self.asked {
            return (self.items(), None);
        }
        while self.taken.len() > self.fitting {
            if self.backwards {
                self.taken.pop_front();
                self.left.end += 1;
            } else {
                self.taken.pop_back();
            }
        }
        let first = if self.backwards { self.left.end } else { self.first };
        let mut set = Element::bare("set", ns::RSM);
        let ends = self.taken.front().zip(self.taken.back());
        if let Some(((front, _), (back, _))) = ends {
            let mut element = xml::element("first", ns::RSM, &[("index", &first.to_string())]);
            element.append_text(front.as_str());
            set.append_child(element);
            set.append_child(with_text("last", back));
        }
        set.append_child(with_text("count", &self.count.to_string()));
        (self.items(), Some(set))
    }

    fn items(self) -> Vec<T> {
        self.taken.into_iter().map(|(_, item)| item).collect()
    }
}

impl Page<Element> {
    /// Puts the items and the `<set/>` into the payload of the answer.
    pub fn finish_in(self, payload: &mut Element) {
        let (items, set) = self.finish();
        for item in items.into_iter().chain(set) {
            payload.append_child(item);
        }
    }
}

fn with_text(name: &str, text: &str) -> Element {
    let mut element = Element::bare(name, ns::RSM);
    element.append_text(text);
    element
}

/// Returns the request for the items after that of this name.
pub fn after(uid: &str) -> Element {
    let mut set = Element::bare("set", ns::RSM);
    set.append_child(with_text("after", uid));
    set
}

/// The place of an answer among the pages, as the answer states it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The name of its last item; none if it has no items.
    pub last: Option<String>,
    /// Whether more items follow, as far as the answer tells.
    pub more: bool,
}

impl Part {
    /// Reads the `<set/>` of an answer that has `items` items; an answer without one is complete.
    pub fn read(payload: &Element, items: usize) -> Self {
        match payload.get_child("set", ns::RSM) {
            Some(set) => Self::of(set, items),
            None => Self { last: None, more: false },
        }
    }

    /// Reads the `<set/>` of an answer that has `items` items.
    pub fn of(set: &Element, items: usize) -> Self {
        let last = set.get_child("last", ns::RSM).map(Element::text).filter(|uid| !uid.is_empty());
        let index = set
            .get_child("first", ns::RSM)
            .and_then(|first| first.attr("index")?.parse::<usize>().ok());
        let count =
            set.get_child("count", ns::RSM).and_then(|count| count.text().trim().parse().ok());
        let reached = index
            .zip(count)
            .is_some_and(|(index, count): (usize, usize)| index.saturating_add(items) >= count);
        Self { more: last.is_some() && items > 0 && !reached, last }
    }
}

/// Returns the part of `room` that is left for the children of an element that has none yet.
pub fn room_inside(element: &Element, room: usize) -> usize {
    // `<x …/>` becomes `<x …>…</x>`.
    let own = size::of(element).map_or(usize::MAX, |size| size + element.name().len() + 2);
    room.saturating_sub(own)
}

/// Returns the length of an element inside another one of the same namespace.
///
/// # Errors
/// `internal-server-error` if it contains characters that XML cannot carry.
pub fn size_inside(element: &Element) -> Result<usize, Refusal> {
    let mut outer = Element::bare("x", element.ns());
    let empty = size::of(&outer).map_err(|_| Refusal::internal())?;
    outer.append_child(element.clone());
    let whole = size::of(&outer).map_err(|_| Refusal::internal())?;
    // `<x …/>` has become `<x …>…</x>`.
    Ok(whole - empty - 3)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stanza::Condition;

    fn request(inside: &str) -> Result<Option<PageRequest>, Refusal> {
        let text = format!("<x xmlns='urn:x'><set xmlns='{}'>{inside}</set></x>", ns::RSM);
        PageRequest::read(&text.parse().unwrap())
    }

    /// Returns a page of items that are named by their numbers and are each `size` bytes long, and its set as (first,
    /// index, last, count).
    fn page(
        inside: Option<&str>,
        count: usize,
        room: usize,
        size: usize,
    ) -> Result<(Vec<usize>, Option<Element>), Refusal> {
        let request = inside.and_then(|inside| request(inside).unwrap());
        let position = request.as_ref().and_then(PageRequest::uid).and_then(|uid| uid.parse().ok());
        let position = position.filter(|number| *number < count);
        let mut page = Page::new(request.as_ref(), count, position, room)?;
        while let Some(number) = page.wants() {
            page.offer(number.to_string(), size, number)?;
        }
        Ok(page.finish())
    }

    fn shown(set: &Element) -> (Option<String>, Option<String>, Option<String>, String) {
        let get = |name: &str| set.get_child(name, ns::RSM);
        (
            get("first").and_then(|first| first.attr("index")).map(str::to_owned),
            get("first").map(Element::text),
            get("last").map(Element::text),
            get("count").unwrap().text(),
        )
    }

    #[test]
    fn pages_are_where_they_are_asked_for() {
        for (inside, items, first) in [
            ("<max>3</max>", 0..3, "0"),
            ("<max>3</max><after>3</after>", 4..7, "4"),
            ("<max>3</max><after>8</after>", 9..10, "9"),
            ("<max>3</max><before/>", 7..10, "7"),
            ("<max>3</max><before>5</before>", 2..5, "2"),
            ("<max>3</max><before>2</before>", 0..2, "0"),
            ("<max>3</max><index>4</index>", 4..7, "4"),
            ("<max>30</max><after/>", 0..10, "0"),
            ("", 0..10, "0"),
            ("<after>1</after>", 2..10, "2"),
        ] {
            let (found, set) = page(Some(inside), 10, usize::MAX, 1).unwrap();
            assert_eq!(found, items.clone().collect::<Vec<_>>(), "{inside}");
            let (index, front, back, count) = shown(&set.unwrap());
            assert_eq!(index.as_deref(), Some(first), "{inside}");
            assert_eq!(front, Some(items.start.to_string()), "{inside}");
            assert_eq!(back, Some((items.end - 1).to_string()), "{inside}");
            assert_eq!(count, "10", "{inside}");
        }
    }

    #[test]
    fn empty_pages_have_a_count_and_nothing_else() {
        for inside in [
            "<max>0</max>",
            "<after>9</after>",
            "<before>0</before>",
            "<index>10</index>",
            "<index>99999999999</index>",
        ] {
            let (found, set) = page(Some(inside), 10, usize::MAX, 1).unwrap();
            assert!(found.is_empty(), "{inside}: {found:?}");
            assert_eq!(shown(&set.unwrap()), (None, None, None, "10".to_owned()), "{inside}");
        }
        // Without items the answer is the same as without a request for a page.
        assert_eq!(page(Some("<max>3</max>"), 0, 100, 1).unwrap(), (vec![], None));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for inside in [
            "<max>x</max>",
            "<max>-1</max>",
            "<max/>",
            "<index>-1</index>",
            "<after>1</after><before>2</before>",
            "<after>1</after><index>2</index>",
        ] {
            assert_eq!(request(inside).unwrap_err().condition, Condition::BadRequest, "{inside}");
        }
        for inside in ["<after>10</after>", "<before>x</before>"] {
            let refusal = page(Some(inside), 10, 1000, 1).unwrap_err();
            assert_eq!(refusal.condition, Condition::ItemNotFound, "{inside}");
        }
        let refusal = page(None, 10, 1000, 1001).unwrap_err();
        assert_eq!(refusal.condition, Condition::PolicyViolation);
    }

    #[test]
    fn whole_answers_are_silent_up_to_the_last_byte() {
        assert_eq!(page(None, 10, 1000, 100).unwrap(), ((0..10).collect(), None));
        let (found, set) = page(None, 10, 999, 100).unwrap();
        assert_eq!(found, (0..7).collect::<Vec<_>>());
        assert!(set.is_some());
    }

    #[test]
    fn the_size_inside_is_what_an_element_adds() {
        let mut outer = xml::element("keys", ns::KEYS, &[("jid", "a@b")]);
        outer.append_child(Element::bare("key", ns::KEYS));
        let before = size::of(&outer).unwrap();
        let mut inner = xml::element("key", ns::KEYS, &[("label", "it's <&>")]);
        inner.append_child(with_text("x", "]]> & so on"));
        outer.append_child(inner.clone());
        assert_eq!(size::of(&outer).unwrap() - before, size_inside(&inner).unwrap());
    }

    proptest! {
        /// Whatever the sizes and the room, each item comes once and in order, forwards and backwards.
        #[test]
        fn whoever_follows_the_pages_gets_every_item_once(
            sizes in proptest::collection::vec(1_usize..400, 1..40),
            // The largest item, its name twice and the frame of a `<set/>` fit.
            room in FRAME + 404..2_000,
            max in proptest::option::of(1_usize..10),
            backwards: bool,
        ) {
            let mut all = VecDeque::new();
            let mut place = if backwards { "<before/>".to_owned() } else { String::new() };
            let limit = max.map(|max| format!("<max>{max}</max>")).unwrap_or_default();
            loop {
                let request = request(&format!("{limit}{place}")).unwrap();
                let position =
                    request.as_ref().and_then(PageRequest::uid).and_then(|uid| uid.parse().ok());
                let mut page =
                    Page::new(request.as_ref(), sizes.len(), position, room).unwrap();
                while let Some(number) = page.wants() {
                    page.offer(number.to_string(), sizes[number], number).unwrap();
                }
                let (found, set) = page.finish();
                let set = set.unwrap();
                let used: usize = found.iter().map(|number| sizes[*number]).sum();
                prop_assert!(used + size_inside(&set).unwrap() <= room);
                prop_assert!(found.len() <= max.unwrap_or(usize::MAX));
                let Some((first, last)) = found.first().zip(found.last()) else { break };
                if backwards {
                    place = format!("<before>{first}</before>");
                    for number in found.iter().rev() { all.push_front(*number); }
                } else {
                    place = format!("<after>{last}</after>");
                    all.extend(found);
                }
            }
            prop_assert_eq!(Vec::from(all), (0..sizes.len()).collect::<Vec<_>>());
        }

        #[test]
        fn a_reader_knows_when_it_has_all(count in 1_usize..50, max in 1_usize..50) {
            let mut number = 0;
            let mut asked = format!("<max>{max}</max>");
            loop {
                let (found, set) = page(Some(&asked), count, usize::MAX, 1).unwrap();
                number += found.len();
                let mut payload = Element::bare("x", "urn:x");
                payload.append_child(set.unwrap());
                let part = Part::read(&payload, found.len());
                prop_assert_eq!(part.more, number < count);
                if !part.more { break }
                asked = format!("<max>{max}</max><after>{}</after>", part.last.unwrap());
            }
            prop_assert_eq!(number, count);
        }
    }
}
