"""Passwords that lists of leaked ones have at their top, in lower case; those of eight characters and more matter."""

from __future__ import annotations

_WORDS = """
    password passw0rd p@ssword p@ssw0rd pa$$word pa$$w0rd passwort motdepasse contraseña senha parola
    password1 passwords mypassword thepassword newpassword yourpassword userpassword testpassword
    iloveyou ilovegod iloveme iloveu ilovemyself lovelove loveyou lovers trustno1 letmein letmeinn welcome welcome1
    admin administrator adminadmin admin123 administrateur root rootroot toor superuser superadmin sysadmin
    changeme changeit changethis default defaultpassword secret secretpassword topsecret
    guest guestguest user username testtest test tester testing qwerty qwerty12 qwertyui qwertyuiop qwertz qwertzui
    azerty azertyui azertyuiop asdfasdf asdfghjk asdfghjkl asdfqwer zxcvbnm zxcvbnma 1q2w3e4r 1q2w3e4r5t 1qaz2wsx
    1qazxsw2 q1w2e3r4 q1w2e3r4t5 qazwsx qazwsxedc qwer1234 qweasd qweasdzxc qweqwe asd123 zaq12wsx zaq1zaq1 zaq1xsw2
    abc123 abc12345 abcd1234 abcdefg abcdefgh a1b2c3d4 aa123456 a123456 a12345678 123abc 123qwe 123qweasd 1234qwer
    12341234 12344321 11223344 11112222 12121212 123123123 123321123 147258369 159753 159357 741852963 789456123
    987654321 0987654321 1029384756 112233445566 31415926 27182818 13579246 24681012 20202020 19841984 12345678910
    sunshine princess football baseball basketball softball hockey soccer superman batman spiderman ironman wolverine
    starwars startrek pokemon pikachu naruto minecraft fortnite nintendo playstation warcraft leagueoflegends
    dragon dragons master masters shadow shadows monkey monkeys monster jennifer jessica michelle michael michael1
    jordan23 charlie charlie1 robert thomas daniel andrew joshua matthew anthony william elizabeth samantha nicole
    victoria alexander alexandra christine christian patrick richard benjamin jonathan stephanie
    whatever nothing forever freedom computer internet samsung google facebook linkedin twitter youtube microsoft
    windows apple iphone android mustang corvette mercedes porsche ferrari yamaha harley midnight summer winter
    autumn spring november december january february september october monday sunday friday
    chocolate butterfly strawberry blueberry pineapple cheese cookie pepper ginger banana orange
    killer hunter ranger rangers maverick phoenix eagles cowboys lakers yankees liverpool arsenal chelsea barcelona
    realmadrid juventus steelers packers trinity matrix blink182 metallica slipknot nirvana eminem
    mother father brother sister family friends friend babygirl babyboy angel angels jesus jesuschrist blessed
    hello hellohello helloworld hellokitty goodbye goodluck godisgood access accessdenied login logmein enter
    biteme fuckyou fuckoff asshole bullshit motherfucker pussycat
    correcthorsebatterystaple temporary temppass temp pass passpass pass1234 pass12345 p4ssword
    company business office employee manager service support server database oracle mysql postgres postgresql redis
    fairlane tenant organization workflow
"""
_MOST_COMMON = """
    password passw0rd p@ssword p@ssw0rd admin administrator root welcome letmein qwerty iloveyou changeme default
    secret test user guest login abc dragon monkey football master sunshine princess hello superman
"""
_ENDINGS = "1 12 123 1234 12345 123456 ! 1! 123! @123 01 00 11 99 2020 2021 2022 2023 2024 2025 2026"

COMMON_PASSWORDS = frozenset(_WORDS.split()) | {
    word + ending for word in _MOST_COMMON.split() for ending in _ENDINGS.split()
}
