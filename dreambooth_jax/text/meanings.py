"""Meanings of short words: why one is a bad identifier."""

# fmt: off
_MEANINGS = {
    "an English word": """
a ad add ado ads age ago ah aha aid ail aim air ale all alp am amp an and ant any ape apt arc
are ark arm art as ash ask asp at ate awe awl awn axe aye baa bad bag bah ban bar bat bay be bed
bee beg bet bib bid big bin bit boa bob bog boo bow box boy bra bud bug bun bus but buy by bye
cab cad cam can cap car cat chi cob cod cog con coo cop cos cot cow cox coy cry cub cud cue cup
cur cut dab dad dam day den dew did die dig dim din dip do doc doe dog don dot dry dub dud due
dug duo dye ear eat ebb eel egg ego eke elf elk elm emo emu end eon era ere err eve ewe eye fab
fad fan far fat fax fed fee few fib fig fin fir fit fix flu fly foe fog for fox fro fry fun fur
gab gag gal gap gas gay gel gem get gig gin gnu go god goo got gum gun gut guy gym had hag ham
has hat haw hay he hem hen her hew hex hey hi hid him hip his hit hob hoe hog hoo hop hot how
hub hue hug huh hum hut i ice icy if ill imp in ink inn ion ire irk is it its ivy jab jag jam
jar jaw jay jet jig job jog jot joy jug jut keg key kid kin kit koi lab lad lag lap law lax lay
led lee leg let lid lie lip lit lo lob log loo lop lot low lug lye mad mag map mar mat maw may
me men met mic mid mix mob mom mop moth mud mug mum my nab nag nap nay net new nib nil nit no
nod nor not now nth nun nut oaf oak oar oat odd ode of off oft oh oil old on one opt or orb ore
our out ova owe owl own ox pad pal pan pap par pat paw pay pea peg pen pep per pet pew pho pic
pie pig pin pip pit ply pod pop pot pox pro pry pub puff pug pun pup put qua rag ram ran rap rat
raw ray red rib rid rig rim rip rob rod roe rot row rub rue rug rum run rut rye sac sad sag sap
sat saw sax say sea see set sew she shh shy sin sip sir sis sit six ski sky sly so sob sod son
sow soy spa spy sty sub sue sum sun sup tab tag tan tap tar tau tax tea ten the thy tic tie tin
tip to toe tom ton too top tot tow toy try tub tug tun tux two ugh uh um un up urn us use van
vat vet vex via vie vow wad wag wan war was wax way we web wed wee wet who why wig win wit woe
wok won woo wow wry yak yam yap yaw yay ye yell yen yep yes yet yew yin yo you yuck yum zap zen
zig zip zit zoo
gli lue orc oxo uhm nox
ayy oof opa tig tye""",
    "a unit or a number": """
am bps btu bu cc cl cm cms cwt db dl doi dos doz ein eur fps ft gal gb gbp ghz gm gms gpm hp hr
hrs hz ii iii iv kb kbs kg kgs khz km kms kph kt kw kwh lb lbs lm lux mb mbs mg mgs mhz mi min
ml mm mol mpg mph ms nm ohm oz pm ppm psi pt qt rpm sec sei sq st tb tbs tre trei tsp uma une
uno usd vi vii vol xi xii xv xx xxx yd yds yr yrs zwei
lev tri""",
    "a file, a format or a term of computing": """
abs api apk app avi bat bin bmp bot cad cgi cli cmd com cpu css csv def del dev dir dll dns doc
dom dos dvd env eps etc exe exp faq fn ftp gif git gnu gpu gui hdd htm http id ide img int io
ios ip iso jar jpg js lan lcd led len lib ln log mac max md mod mov mpg msg mul nan net npm num
obj org os pc pdf php pkg png ppt ptr py ram rar raw ref rel ret rev rgb rom rss rtf sdk seo seq
sms sql src ssd ssh ssl std str svg sys tan tar tcp tec tex tmp ttf txt uri url usb usr utf val
var vhs vpn wav www xls xml yml
cfd cq dps gtx idf lll ssu
ccd pci ql vfx""",
    "an abbreviation": """
aka al alt apr apt asap atm aug ave avg bc bio bro ca cab cal ceo cf cfo chr ci cia cir cit cj
co col cpr cs ct cto cv cvs da dc dec dem dep diy dj dna dob dr eco ed eds eg eh em emp en ent
epi est eta eu ext fbi feb fig fm fri fwd fyi gal gdp gen geo gmt gop gov govt gps hd hiv hq ie
imf imo inc inf iq irs jan jr jul jun lgb lgbt lib liq llc lol lp lsd ltd mar mba mc med mfg mil
misc mon mp mr mrs msc mst mt mvp na nat nb nc neg neo ngo nhs nov np nr nsa nsf num ny nyc ob
oct ok omg op pa pct pg phd pl pls pos pp pr prep pres prof ps pto pvc qty rd re rec ref reg rep
res rev rh rho rip rna rv sat sc sci sd sen sep ser sf sg sig spec sr ss suv syn tba tbd tech
tel temp thu thx tue tv ty ufo uk un uni univ uri us usa uv ux va vip vis viz vol vr vs wed wi
wtf www xl xs ya
brb cfa cgc cte dds etf ibd itc mdc mth mz ppc scs ssw ucc utv
atc bpl br cii cso dnr dod dys ecg esl iaf nhm phl stn wbc wcs""",
    "a name": """
abe abu ada adi al ali amy ana ann ari ash ava aya bea beb bel ben bob cal cam cher congo cuba
dan deb dee del dom don ed eli ely ema emi eva eve fay gil gus hal ian ida ike ina india ira
iran iraq isa ivy jan jay jeb jed jen jim jo joe jon jos kai kay ken kim kit kyle laos lea lee
len leo les lex lia lin liz lou lu lui luz lyn mac mae mali mao mat max meg mel mia mike moe nat
ned nia noa nora ola oman pam pat peg peru pia pol rae raj ray ren rex ria rob rod roma ron ros
roy sal sam sid sol stu sue syd tad ted thor tia tim tod togo val vic viv von wes yan yao yu zac
zen zeus zoe
aun naz nyk roz sah
bha flo iba jia jor taj tng yeo""",
    "a brand, a team or a weapon": """
abc acer adi ak akm aks amd smg amg aol apc ar att audi avon bbc bic bmw bp btc cbs cnn dbz dell dhl
ebay epl esp espn fal fed fifa ford gap glock gmc hbo hm hp htc httr ibm ikea imax jbl jcb jvc
kfc kia lego lg mgm mlb mls msi mtv nasa nba nbc nec nes nfl nhl nike nra nvr oreo pbs pez pga
prada ps psg psp rca rpg ruger sap sbs sig sks sony suv tdk tec tnt uefa ufc ups usps uzi visa
vw wii wwe xbox ysl zara""",
    "a word of another language": """
aber ai ain alb ami ao aos asa au auf aus aux avo bal bas bei ben bis blu bon buc bun cas ce cea
cel ces cet chi ci com con cou cu cui cum das dei del dem den der des det dia die din dir doi
dos du ea ei el ele em er era est eu eux feu fi fil fin foi fou fra fut ga gar gaz haus het hij
hoi ich ihm ihn ihr il im ist ja jai je jeu jij jus ka la lac las le les loc loi los lua lui luz
mai mal mas mer mes met meu mi mij mio moi mot mou mui mur na ne nei neu nez nie nom non nos nu
nur oder oh ojo ola om ook ora oro os ou par pas pe per peu pla por pot pour que qui rei rey ri
riz roi rua rue sa san sau se sei sel ser ses si sie sim sin soi sol son sont sou su sua sud sul
sur ta tal te ten tes toi tot tra tu tun tuo ubi um una und une uns ur va van ver vez via vie
vin vino viu voi von vor vos voz vu vue wa wem wer wie wij wir ya yo zijn zu zum zur""",
    "offensive, or its beginning": """
anal arse ass bum clit coc cock coon cum cunt dic dick dyk fag fap fuc fuck fuk gay hoe homo
isis jap jew jiz kkk kys nazi nig nud pee pis piss poo porn pus rape sex shit slut spic tard tit
turd vag wank wog wop
fu""",
}
# fmt: on
_MEANING_OF = {word: kind for kind, words in reversed(_MEANINGS.items()) for word in words.split()}
OFFENSIVE = [w for w in _MEANINGS["offensive, or its beginning"].split() if len(w) > 2]


def meaning(text: str) -> str | None:
    """Returns the meaning of a short lower-case word ("a unit or a number"), None if unknown."""
    return _MEANING_OF.get(text)
