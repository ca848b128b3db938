"""The words of the simulated models, by their place in a sentence. Data only."""

from typing import Final


def _words(line: str) -> tuple[str, ...]:
    return tuple(line.split())


ADJECTIVES: Final = _words(
    "able amber ancient bold brave brief bright broad busy calm careful central clear clever common cool curious dark"
    " deep distant double early eager empty exact fair famous fast fine firm fresh gentle global golden grand great"
    " green happy heavy hidden honest humble inner keen large late lean light little local lonely long loud lucky"
    " modern narrow native new noble northern old open outer pale patient plain polite present prime proud pure quick"
    " quiet rapid rare ready recent rich rough round royal rural sharp short silent silver simple slow small smooth"
    " soft solid southern steady steep still strange strong subtle sudden tall tender thin tidy tiny usual vast warm"
    " wide wild wise young"
)
NOUNS: Final = _words(
    "answer archive arrow artist author autumn basket battery beach bird board boat bottle branch breeze bridge brook"
    " builder cabin camera canal candle captain castle chapter city clock cloud coast colour copper corner council"
    " country courier cradle crew crowd dancer dawn desert doctor dream driver editor engine evening factory farmer"
    " ferry festival field fire forest fountain friend garden gate glacier glass grain guide harbour harvest hill"
    " horizon horse house idea island journey judge kitchen ladder lake lamp lantern lawyer lesson letter library"
    " machine map market meadow melody memory merchant message meteor mirror model moment monitor morning mountain"
    " museum music network notebook number ocean office orchard painter paper path pattern pencil pilot pioneer"
    " planet poem port printer project question railway rain record report ridge river road rocket sailor scholar"
    " school season secret shadow shelter ship signal singer sister sketch snow soldier song sparrow spring square"
    " stadium star station stone storm story street student summer surface teacher temple theory thread ticket tower"
    " town trader traveller tree tunnel valley vessel village violin voice wagon wall water weaver well wheel window"
    " winter witness wolf writer"
)
TRANSITIVE_VERBS: Final = _words(
    "accepted answered approached avoided balanced borrowed built carried caught changed charted chose compared"
    " completed counted covered crossed described designed discovered drew dropped enjoyed examined explained explored"
    " followed found gathered greeted guarded guided heard helped imagined improved invited joined kept knew led left"
    " lifted lit loved marked measured mentioned met mended moved named noticed observed offered opened ordered packed"
    " painted passed planned praised prepared presented protected pulled pushed raised reached recalled received"
    " recorded remembered repaired replaced reported rescued saved searched served shaped shared showed studied"
    " supported surprised taught tested touched traced trusted visited watched welcomed"
)
INTRANSITIVE_VERBS: Final = _words(
    "appeared arrived began danced drifted emerged floated gleamed grew hid hurried lingered listened lived paused"
    " played rested returned rose sailed sang settled shone slept smiled stayed stood stopped travelled vanished"
    " waited walked wandered worked"
)
ADVERBS: Final = _words(
    "again almost already always bravely briefly brightly carefully clearly closely often early easily eagerly"
    " finally firmly first freely gently gladly happily here later lightly maybe meanwhile nearby never nightly now"
    " once openly patiently perhaps politely proudly quickly quietly rarely really silently simply slowly softly"
    " sometimes soon steadily still suddenly surely today together twice usually warmly well yesterday"
)
PREPOSITIONS: Final = _words("above across against along around before behind below beside beyond near under")
DETERMINERS: Final = _words("the a each every one this that another no some")

_OTHERS: Final = _words(
    "about after all also an and any are as at be because been being between both but by can could did do does down"
    " during even few for from get give go good had has have he her high him his how i if in into is it its just know"
    " last less like look make many may me more most much must my next not of off on only or other our out over own"
    " part people place please put right said same say see she should since so such take tell than their them then"
    " there these they thing think those through time to too two until up upon us use very want was way we were what"
    " when where which while who why will with without word work world would write year yes yet you your system user"
    " assistant tool summary explain list following text question context data token tokens cost price request"
    " response error value name type function class return import print code file line"
)

WORDS: Final = tuple(
    dict.fromkeys(
        (
            *DETERMINERS,
            *PREPOSITIONS,
            *ADVERBS,
            *INTRANSITIVE_VERBS,
            *TRANSITIVE_VERBS,
            *NOUNS,
            *ADJECTIVES,
            *_OTHERS,
        )
    )
)
