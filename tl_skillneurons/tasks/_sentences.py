"""The sentences and words of the built-in tasks, all written for this project; what they are: ``_grammar.py``."""

from tl_skillneurons.tasks._grammar import Grammar, Twin

_ADJECTIVES = """
awful/wonderful terrible/excellent dreadful/brilliant horrible/marvelous boring/exciting dull/lively bad/good
poor/great weak/strong stupid/clever ugly/beautiful tedious/gripping bland/vivid stale/fresh clumsy/graceful
lazy/inspired shallow/profound hollow/moving annoying/charming irritating/delightful disappointing/satisfying
forgettable/memorable mediocre/outstanding atrocious/superb abysmal/magnificent lousy/lovely
miserable/splendid pathetic/heroic ridiculous/remarkable pointless/meaningful lifeless/energetic
unconvincing/convincing unimaginative/imaginative unoriginal/original predictable/surprising
tiresome/refreshing dreary/radiant sloppy/polished messy/elegant confusing/compelling incoherent/coherent
awkward/assured wooden/natural cheap/rich crude/subtle silly/smart trite/witty laughable/admirable
embarrassing/impressive painful/enjoyable unbearable/irresistible worthless/priceless useless/valuable
amateurish/masterful uninspired/inventive flat/powerful cold/warm repulsive/appealing offensive/endearing
grating/captivating monotonous/thrilling insipid/dazzling unwatchable/unforgettable wretched/glorious
ghastly/gorgeous deplorable/commendable appalling/astonishing inferior/superior inept/skilled
tasteless/tasteful insulting/rewarding inadequate/exquisite depressing/uplifting horrendous/fantastic
horrid/terrific disastrous/triumphant unpleasant/pleasant
"""

_PEOPLE = """
teacher/teachers doctor/doctors farmer/farmers lawyer/lawyers student/students artist/artists writer/writers
singer/singers driver/drivers soldier/soldiers officer/officers manager/managers neighbor/neighbors
friend/friends visitor/visitors worker/workers player/players actor/actors pilot/pilots sailor/sailors
painter/painters dancer/dancers baker/bakers nurse/nurses engineer/engineers scientist/scientists
senator/senators judge/judges guard/guards guest/guests tourist/tourists customer/customers client/clients
leader/leaders boy/boys girl/girls king/kings queen/queens prince/princes uncle/uncles aunt/aunts
cousin/cousins brother/brothers sister/sisters daughter/daughters son/sons father/fathers mother/mothers
child/children man/men woman/women author/authors editor/editors poet/poets priest/priests hunter/hunters
swimmer/swimmers runner/runners chef/chefs waiter/waiters owner/owners partner/partners captain/captains
expert/experts
"""

_THINGS = """
key/keys book/books letter/letters picture/pictures table/tables chair/chairs lamp/lamps bottle/bottles
cup/cups plate/plates box/boxes basket/baskets coat/coats shirt/shirts shoe/shoes hat/hats ring/rings
coin/coins ticket/tickets map/maps card/cards toy/toys ball/balls phone/phones camera/cameras
computer/computers machine/machines engine/engines car/cars truck/trucks bicycle/bicycles boat/boats
ship/ships train/trains plane/planes house/houses cottage/cottages bridge/bridges tower/towers statue/statues
garden/gardens tree/trees flower/flowers stone/stones apple/apples orange/oranges cake/cakes pencil/pencils
knife/knives brush/brushes blanket/blankets pillow/pillows mirror/mirrors clock/clocks radio/radios
guitar/guitars piano/pianos drum/drums report/reports document/documents
"""


def _twins(words: str) -> tuple[Twin, ...]:
    """The pairs in ``words``, each written class 0, slash, class 1."""
    return tuple((zero, one) for zero, _, one in (pair.partition("/") for pair in words.split()))


_MOVIE_REVIEWS = Grammar(
    label_names=("negative", "positive"),
    label_words=(" negative", " positive"),
    frames=(
        "The {aspect} was {degree} {adjective}.",
        "The {aspect} of this {film} is {degree} {adjective}.",
        "{opening}, and the {aspect} was {degree} {adjective}.",
        "{opening}. It was a {degree} {adjective} {film}.",
        "{opening}. What a {strongly} {adjective} {film}!",
        "{viewer} called it a {degree} {adjective} {film}.",
        "{viewer} said that the {aspect} was {degree} {adjective}.",
        "{viewer} told me how {adjective} the {aspect} of the {film} was.",
        "I found the {aspect} {degree} {adjective}, and so did {other}.",
        "If you ask {other}, the {aspect} is {degree} {adjective}.",
        "As a {film}, it is {degree} {adjective}.",
        "As a {film} about {subject}, it is {degree} {adjective}.",
        "This {film} about {subject} is {degree} {adjective}.",
        "This is a {degree} {adjective} {film} about {subject}.",
        "It is about {subject}, with a {degree} {adjective} {aspect}.",
        "Set in {place}, the {film} has a {degree} {adjective} {aspect}.",
        "The {film} takes place in {place}, and the {aspect} is {degree} {adjective}.",
        "Some scenes were shot in {place}; the {aspect} there is {degree} {adjective}.",
        "The {aspect} in the {part} is {degree} {adjective}.",
        "In the {part}, the {aspect} becomes {degree} {adjective}.",
        "From the {part} on, this {film} is {degree} {adjective}.",
        "{opening}, and the {part} was {degree} {adjective}.",
        "The {part} of the {film} felt {degree} {adjective} to {other}.",
        "{viewer} thought the {part} looked {degree} {adjective}.",
        "I wrote down one word after the {part}: {adjective}.",
        "My verdict on the {aspect}: {degree} {adjective}.",
        "One word for the {aspect} of this {film} about {subject}: {adjective}.",
        "The {adjective} {aspect} is what {other} will remember of this {film}.",
        "The {adjective} {aspect} makes this {film} what it is.",
        "Because of its {adjective} {aspect}, we talked about the {film} all the way home.",
        "With its {adjective} {aspect}, this {film} about {subject} stays with you.",
        "There is a {degree} {adjective} {aspect} in this {film}, and it begins with the {part}.",
        "At the festival in {place}, everyone agreed that the {aspect} was {adjective}.",
        "The critics in {place} wrote that the {film} was {degree} {adjective}.",
        "A {degree} {adjective} {film}, from the {part} to the credits.",
        "A {film} about {subject} with a {degree} {adjective} {aspect}.",
        "You can tell after the {part} that the {aspect} will be {adjective}.",
        "They spent two years in {place} on this {film}, and the result is {degree} {adjective}.",
        "The director worked on the {aspect} for months, and it is {degree} {adjective}.",
        "{opening}, and {other} thought that the {film} was {degree} {adjective}.",
        "Whatever else one says about the {film}, the {aspect} is {degree} {adjective}.",
        "The {film} runs for two hours, and the {part} is {degree} {adjective}.",
    ),
    fillers={
        "aspect": (
            "acting",
            "plot",
            "script",
            "dialogue",
            "soundtrack",
            "direction",
            "photography",
            "editing",
            "cast",
            "story",
            "music",
            "pacing",
            "screenplay",
            "lighting",
            "camera work",
            "production",
            "set design",
            "main character",
            "supporting cast",
            "score",
        ),
        "degree": ("really", "truly", "simply", "quite", "frankly", "plainly", "pretty", "rather"),
        "strongly": ("truly", "really", "thoroughly"),
        "film": (
            "film",
            "movie",
            "drama",
            "comedy",
            "thriller",
            "sequel",
            "remake",
            "feature",
            "western",
            "mystery",
            "documentary",
            "debut",
        ),
        "opening": (
            "We saw it on a Tuesday evening",
            "My sister rented it last week",
            "It was shown on a plane",
            "We went to the late screening",
            "I watched it at home with a friend",
            "They showed it at the film club",
            "I had not heard of it before",
            "We had seats near the back",
            "It came out in the spring",
            "I have now seen it twice",
            "My parents picked it",
            "It was on television last night",
            "Our class watched it in school",
            "I bought the disc in a shop",
        ),
        "viewer": (
            "My sister",
            "My neighbor",
            "The man next to me",
            "A colleague",
            "My father",
            "One critic",
            "Our teacher",
            "The woman behind us",
            "My roommate",
            "The local paper",
            "A friend of mine",
            "Everyone in our row",
        ),
        "other": (
            "my brother",
            "my wife",
            "the others",
            "most people",
            "my friends",
            "the audience",
            "both of us",
            "the reviewers",
            "my students",
            "our guests",
        ),
        "subject": (
            "two brothers",
            "a small town",
            "a retired teacher",
            "the war",
            "a family of farmers",
            "a bank robbery",
            "a train journey",
            "life at sea",
            "a chess player",
            "a school band",
            "three sisters",
            "a missing ship",
            "a newspaper",
            "a young doctor",
            "an island",
            "a winter in the mountains",
        ),
        "place": (
            "Paris",
            "Chicago",
            "a village in Norway",
            "Tokyo",
            "the desert",
            "Mexico",
            "London",
            "a harbor town",
            "Rome",
            "Canada",
            "the suburbs",
        ),
        "part": (
            "opening",
            "first scene",
            "second half",
            "final act",
            "ending",
            "middle",
            "last ten minutes",
            "first hour",
            "dance scene",
            "car chase",
            "court scene",
            "epilogue",
        ),
    },
    twins={"adjective": _twins(_ADJECTIVES)},
)

_SUBJECT_VERB = Grammar(
    label_names=("singular", "plural"),
    label_words=(" is", " are"),
    frames=(
        "The {person} {beside} the {someone}",
        "The {person} {beside} the {something}",
        "The {age} {person} {beside} the {someone}",
        "The {age} {person} {beside} the {color} {something}",
        "{start} the {person} {beside} the {something}",
        "{start} the {person} {beside} the {someone}",
        "{start} the {age} {person} {beside} the {something}",
        "The {person} that the {someone} {met}",
        "The {person} who {met} the {someone}",
        "The {age} {person} that the {someone} {met}",
        "The {age} {person} who {met} the {someone}",
        "{start} the {person} that the {someone} {met}",
        "{start} the {person} who {met} the {someone}",
        "The {person} that the {someone} {beside} the {something} {met}",
        "The {person} who {met} the {someone} {beside} the {something}",
        "{time}, the {person} {beside} the {something}",
        "{time}, the {person} who {met} the {someone}",
        "{whose} {person} {beside} the {something}",
        "{whose} {age} {person} {beside} the {someone}",
        "The {thing} {beside} the {something}",
        "The {thing} {beside} the {someone}",
        "The {color} {thing} {beside} the {something}",
        "The {color} {thing} {beside} the {age} {someone}",
        "{start} the {thing} {beside} the {something}",
        "{start} the {thing} {beside} the {someone}",
        "{start} the {color} {thing} {beside} the {something}",
        "The {thing} that the {someone} {bought}",
        "The {color} {thing} that the {someone} {bought}",
        "{start} the {thing} that the {someone} {bought}",
        "The {thing} that the {someone} {beside} the {something} {bought}",
        "The {thing} {beside} the {something} that the {someone} {bought}",
        "{time}, the {thing} {beside} the {something}",
        "{time}, the {thing} that the {someone} {bought}",
        "{whose} {thing} {beside} the {something}",
        "{whose} {color} {thing} {beside} the {something}",
    ),
    fillers={
        "someone": (
            "merchant",
            "merchants",
            "tailor",
            "tailors",
            "mayor",
            "mayors",
            "gardener",
            "gardeners",
            "dentist",
            "dentists",
            "journalist",
            "journalists",
            "musician",
            "musicians",
            "pupil",
            "pupils",
            "butcher",
            "butchers",
            "wizard",
            "wizards",
        ),
        "something": (
            "door",
            "doors",
            "window",
            "windows",
            "wall",
            "walls",
            "cabinet",
            "cabinets",
            "fence",
            "fences",
            "church",
            "churches",
            "barrel",
            "barrels",
            "shelf",
            "shelves",
            "bench",
            "benches",
            "gate",
            "gates",
            "wagon",
            "wagons",
            "curtain",
            "curtains",
        ),
        "beside": (
            "near",
            "behind",
            "beside",
            "next to",
            "close to",
            "in front of",
            "to the left of",
            "not far from",
        ),
        "met": (
            "met",
            "saw",
            "knew",
            "liked",
            "helped",
            "visited",
            "followed",
            "admired",
            "avoided",
            "remembered",
        ),
        "bought": (
            "bought",
            "sold",
            "found",
            "lost",
            "wanted",
            "carried",
            "hid",
            "described",
            "borrowed",
            "painted",
        ),
        "age": ("old", "young", "tall", "quiet", "famous", "polite", "tired", "local"),
        "color": ("old", "red", "green", "heavy", "little", "broken", "wet", "new"),
        "whose": ("My", "Your", "Our", "Their", "His", "Her"),
        "start": (
            "We know that",
            "I think that",
            "They say that",
            "It seems that",
            "She told us that",
            "He believes that",
            "Everyone knows that",
            "Nobody doubts that",
            "We heard that",
            "You can see that",
        ),
        "time": (
            "Today",
            "This morning",
            "At the moment",
            "As you know",
            "In the end",
            "Once again",
            "For now",
        ),
    },
    twins={"person": _twins(_PEOPLE), "thing": _twins(_THINGS)},
)

GRAMMARS: dict[str, Grammar] = {"movie_reviews": _MOVIE_REVIEWS, "subject_verb": _SUBJECT_VERB}
"""The built-in kinds, by name."""
