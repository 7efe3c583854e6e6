"""Words that say no: "not a cat", "a beach without people", "neither a cat nor a dog".

A text encoder reads "not a cat" nearly as it reads "a cat". So what is negated becomes a term of negative weight
(`steering.algebra`), and the probability is turned round. What says no in a way that cannot be read is refused.
Unusual: names that hold such a word, such as "no parking sign" or "forget-me-not", are read as they stand.
"""

from __future__ import annotations

import re

from steering.errors import QueryError

_JOIN = "\x00"  # stands for a space within a name that must not be taken apart
_START, _END = rf"(?<![\w\-{_JOIN}])", rf"(?![\w\-'’{_JOIN}])"


def _whole(pattern: str) -> re.Pattern[str]:
    """A pattern of whole words, in any case, with any white space between them."""
    return re.compile(_START + f"(?:{pattern})".replace(" ", r"\s+") + _END, re.IGNORECASE)


_NAMES = _whole(
    r"no (?:parking|entry|smoking|stopping|standing|waiting|trespassing|swimming|fishing|littering|diving|"
    r"exit|entrance|overtaking|loitering|fly|go|through road|u-turn|left turn|right turn|\w+ allowed|man['’]?s land|"
    r"ball|fault)"
    r"(?: (?:signs?|zones?|areas?|lines?|notices?|symbols?|insurance))?|"
    r"point of no return|forget me nots?|touch me nots?|know nothings?|don['’]t[- ]knows?|all or nothing|"
    r"sans serif|absence without leave|"
    r"no\.? ?\d+|(?:a|the) minus signs?|minus signs?|(?:a|the) missing links?|missing links?|missing person posters?"
)
_UNCLEAR = _whole(
    r"nothing but|nothing|nobody|none|nowhere|never (?:an?|the|any)|cannot|hardly|barely|unless|\w+n['’]t|no-one|"
    r"no (?:one|more|less|fewer|longer|other)|"
    r"not (?:only|just|all|every|many|much|any ?more|longer|yet|quite|always|more|less|fewer|even|so|too|very|"
    r"in|on|at|under|behind|near|next|beside|above|below|inside|with|without|no|not)|without (?:no|not)|"
    r"did not|(?:do|does) not(?! (?:show|have|contain|include|wear) )"
)
_FREE = _whole(
    r"(?!(?:half|hands|duty|sugar|gluten|tax|toll|fat|lactose|dairy|caffeine|alcohol|salt|meat|care)-)[^\W\d]+-free"
)
_LEFT = _whole(r"not|neither|nor|without|except|excluding|no(?= \S)")
_HANGING = _whole(r"(?:do|does|there is|there are)$")  # what is left where the sentence has another form
_LEAD = r"(?:(?:there (?:is|are)|is there|are there|this is|show me|find me|find|search for|look for|i want|give me) )?"
_EMPTY = (  # what names nothing
    r"(?:(?:an?|the|any|some|all|every) )?"
    r"(?:photo(?:graph)?s?|pictures?|pics?|images?|scenes?|shots?|views?|anything|everything|something|things?|places?|"
    r"somewhere|any|all)"
)
_HAS = r"(?:(?:of|with|that (?:has|have|shows?)|having|showing|containing|(?:in which|where) there (?:is|are)) )?"
_ABSENCE = r"(?:the )?(?:absence|lack) of"
_DOES_NOT = r"(?:that|which|who) (?:does|do) not (?:show|have|contain|include|wear)"
_SAYS_NO = _DOES_NOT + r"|not|no|without|except for|except|excluding|lacking|sans|devoid of|free of|neither|" + _ABSENCE
_BUT = r"but no|but not|but|other than|besides|apart from|minus|missing|" + _SAYS_NO


def _from_start(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern.replace(" ", r"\s+"), re.IGNORECASE | re.DOTALL)


_GONE = _from_start(r"^(?P<unwanted>.+?) (?:is|are) (?:absent|missing|gone|not there|not present|not here)$")
_NOT_A = _from_start(rf"^{_LEAD}(?:an? )?non-(?P<unwanted>[^\W\d]+)$")
_FRONT = _from_start(rf"^{_LEAD}(?:{_EMPTY} )?{_HAS}(?P<how>{_SAYS_NO}) (?P<unwanted>.+)$")
_ALL_BUT = _from_start(rf"^{_LEAD}{_EMPTY}(?: else)?,? {_HAS}(?P<how>{_BUT}) (?P<unwanted>.+)$")
_KIND_BUT = _from_start(r"^(?P<wanted>(?:all|any|every) .+?) but (?P<unwanted>.+)$")
_MIDDLE = _from_start(
    r"^(?P<wanted>.*?[^\s,]),? "
    r"(?:without|with no|with neither|(?:but|and) (?:is )?(?:without|with no|not|no)|having no|lacking|missing|"
    r"free of|devoid of|minus|sans|except for|except|excluding|other than|apart from|instead of|rather than|"
    + _DOES_NOT
    + r"|(?:in which|where) there (?:is|are) no|(?:that|which|who) (?:is|are) not|"
    r"(?:that|which|who) (?:has|have) no|no|not) (?P<unwanted>.+)$"
)
_ARTICLE_ALONE = re.compile(r"^(?:an?|the|any|some|all|every)$", re.IGNORECASE)
_NOTHING_NAMED = _from_start(rf"^{_LEAD}{_EMPTY}$")
_AND = re.compile(
    r"\s*(?:,\s*(?:and|or|nor)?|\s(?:and|or|nor))\s+(?P<again>(?:no|not|without|with\s+no)\s+)?", re.IGNORECASE
)
_TRIM = _from_start(
    r"^(?:(?:of|any|a single|(?:any |a )?(?:signs?|traces?) of|neither) )+|"
    r"(?: (?:here|there|anywhere|at all|in it|(?:in|on) (?:the|this|a) (?:photo(?:graph)?|picture|image|scene)))+$"
)


def negated(text: str) -> tuple[str, tuple[str, ...]] | None:
    """What a text wants and what it does not want; None if it says no nowhere.

    "a dog without a leash" gives ("a dog", ("a leash",)). "a photo without a cat" gives ("", ("a cat",)), since "a
    photo" names nothing.

    Raises:
        QueryError: the text says no in a way that cannot be read. The message names the form that can.
    """
    masked = _NAMES.sub(lambda match: re.sub(r"\s", _JOIN, match[0]), text.strip().rstrip(" ?!."))
    unclear = _UNCLEAR.search(masked) if not _GONE.match(masked) else None
    unclear = unclear or _FREE.search(masked)
    if unclear:
        raise _refusal(text, unclear[0])
    wanted, unwanted = _taken_apart(text, masked)
    for piece in (wanted, *unwanted):
        left = _LEFT.search(piece) or (_HANGING.search(piece) if unwanted else None)
        if left or not (piece or unwanted):
            raise _refusal(text, left[0] if left else text)
    if not unwanted:
        return None
    return wanted.replace(_JOIN, " "), tuple(piece.replace(_JOIN, " ") for piece in unwanted)


def _taken_apart(text: str, masked: str) -> tuple[str, tuple[str, ...]]:
    for pattern in (_GONE, _NOT_A, _ALL_BUT, _FRONT, _KIND_BUT, _MIDDLE):
        match = pattern.match(masked)
        if match is None:
            continue
        parts = match.groupdict()
        wanted = parts.get("wanted", "").strip()
        if _ARTICLE_ALONE.match(wanted):  # "a minus sign", "a missing person"
            continue
        if _NOTHING_NAMED.match(wanted):
            wanted = ""
        strict = bool(re.match(r"(?:no|not)$", parts.get("how") or "", re.IGNORECASE))
        return wanted, tuple(_separate(text, parts["unwanted"], strict))
    return masked, ()


def _separate(text: str, unwanted: str, strict: bool) -> list[str]:
    """The things of a list: "a cat nor a dog", "cats or dogs", "cat and no dog".

    `strict` is for "not a cat and a dog", "no cats, only dogs": whether the dog is wanted, nobody can tell.
    """
    pieces, start = [], 0
    for match in _AND.finditer(unwanted):
        joint = match[0].strip().lower()
        if strict and not match["again"] and not re.search(r"\b(?:or|nor)\b", joint):
            raise _refusal(text, match[0].strip())
        pieces.append(unwanted[start : match.start()])
        start = match.end()
    pieces.append(unwanted[start:])
    hit = re.search(r"\b(?:but|only)\b", unwanted, re.IGNORECASE)
    if hit:
        raise _refusal(text, hit[0])
    cleaned = [_TRIM.sub("", piece.strip()).strip() for piece in pieces]
    if not all(cleaned):
        raise _refusal(text, unwanted)
    return cleaned


def _refusal(text: str, what: str) -> QueryError:
    said = what.replace(_JOIN, " ")
    return QueryError(
        f'query {text!r}: “{said}” cannot be read here; "- a cat" asks whether a cat is absent, '
        '"a dog - a cat" asks for a dog without a cat'
    )
