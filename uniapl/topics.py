"""Topics of the prompts, each with words that keyword constraints draw from, and the split it belongs to.

The splits share no topic, so that a development or held-out prompt is about something that training never was about.
"""

from __future__ import annotations

_TRAIN = """
beekeeping: hive honey swarm smoke queen nectar
baking bread: dough oven flour crust yeast loaf
a small garden: soil seeds water weeds flowers shade
riding a bicycle: wheel helmet pedal road brake balance
learning the guitar: strings chord practice finger song rhythm
morning coffee: cup beans aroma bitter kitchen steam
a rainy day: umbrella puddle cloud window thunder boots
camping in the forest: tent fire trail lantern pine stars
the public library: shelf novel quiet card reader desk
a pet cat: whiskers paw nap milk fur purr
train travel: station ticket platform track seat luggage
swimming lessons: pool stroke breath goggles towel float
a family dinner: table plate soup laughter recipe bread
the night sky: moon planet telescope comet dark galaxy
working from home: laptop meeting chair focus break slippers
a farmers market: apple stall basket fresh cheese neighbor
chess: pawn knight board strategy rook checkmate
house plants: leaf pot sunlight root fern moisture
running a marathon: mile shoes pace sweat medal finish
a school science fair: poster volcano judge project battery prize
old photographs: album memory frame smile attic grandmother
making soup: broth carrot spoon onion simmer pepper
a trip to the beach: sand shell wave tide sunscreen castle
saving money: budget bank coin bill goal account
a snowy morning: scarf sled frost shovel mittens icicle
learning to cook: knife pan salt recipe burn taste
birdwatching: feather nest binoculars wing robin branch
a new bicycle shop: repair chain customer wrench tire opening
first day at a job: office badge lunch manager handshake nerves
a lost dog: collar poster park reward bark leash
recycling at home: plastic glass paper bin metal waste
painting a room: brush ladder color wall roller tape
a local football match: goal referee whistle crowd jersey score
sleeping well: pillow bed dream blanket alarm rest
a birthday party: cake candle balloon gift guest music
walking to work: street sidewalk corner shoes traffic sunrise
volunteering: charity shelter hours kindness team community
fixing a leaky faucet: wrench pipe drip valve sink washer
a haunted house: ghost candle shadow creak door midnight
learning a language: grammar accent vocabulary teacher mistake speak
tea: kettle leaves mint mug sugar lemon
the autumn season: harvest pumpkin leaves wind orange sweater
a mountain hike: summit trail boots map rope valley
knitting: yarn needle scarf pattern wool stitch
an online store: order package review delivery refund discount
mindful breathing: calm lungs minute posture silence stress
a city bus: driver stop route ticket window passenger
robots at home: sensor vacuum battery button circuit chores
elephants: trunk herd tusk calf memory savanna
a lighthouse: beacon rock sailor storm tower fog
pizza night: cheese slice tomato oven crust basil
solar power: panel roof energy battery electricity cloud
a treehouse: ladder branch rope plank secret roof
moving to a new city: box apartment neighbor map truck farewell
homework: pencil notebook teacher essay deadline desk
a thunderstorm: lightning rain thunder power candle wind
the human heart: blood pulse muscle valve exercise rhythm
fishing at the lake: bait hook boat line patience trout
dancing: step music partner rhythm floor spin
public speaking: audience voice slide nerves microphone pause
a wooden chair: carpenter hammer nail polish leg oak
the desert: sand cactus camel oasis heat dune
gift ideas: ribbon surprise wrapping card budget thoughtful
a magic show: wand rabbit hat trick curtain applause
healthy snacks: nuts fruit yogurt carrot energy sugar
time management: calendar list priority hour deadline focus
a small bakery: croissant counter window butter queue apron
dinosaurs: fossil bone egg museum claw extinct
video calls: camera screen microphone mute background internet
cleaning the house: broom dust sponge floor bucket vacuum
a river boat: captain deck current anchor paddle bridge
the first snow: flake silence roof window sled street
"""

_DEVELOPMENT = """
a bamboo flute: tone breath melody wood finger player
growing tomatoes: vine stake ripe watering summer sauce
a weekend in the mountains: cabin lake trail fireplace view hiking
repairing a watch: gear spring tiny battery patience tool
penguins: ice colony egg swim flipper fish
a night at the theater: stage actor curtain costume applause seat
learning to draw: pencil sketch line shadow eraser paper
a quiet cafe: table waiter music window pastry book
electric cars: charger battery road motor noise range
a school garden: pupils beans spade worm harvest fence
writing a diary: pen page feeling memory evening secret
the harbor: ship crane gull rope sailor pier
jigsaw puzzles: piece edge picture patience table corner
a soccer coach: whistle drill team cone goal advice
making jam: strawberry jar sugar spoon lid boil
a power outage: candle flashlight darkness neighbor fridge battery
the circus: clown tent acrobat juggler drum elephant
good manners: please thanks patience listen smile respect
a paper airplane: fold wing glide throw nose paper
the moon landing: astronaut rocket crater flag orbit dust
"""

_HELDOUT = """
a sailing trip: wind mast anchor deck island compass
origami: paper fold crane square crease patience
growing mushrooms: spores shade basket soil cap forest
a museum visit: painting guide ticket statue hall history
whales: ocean song calf fin deep krill
a neighborhood bookshop: shelf author poem owner discount story
making pasta: dough sauce basil boil fork garlic
the subway: tunnel station crowd map doors token
a hot air balloon: basket flame sky wind view landing
planning a wedding: ring guest cake flowers music invitation
yoga for beginners: mat stretch breath balance pose calm
a violin: bow string concert tune wood teacher
volcanoes: lava ash crater eruption magma island
an old clock: tick tower hour gear bell brass
urban foxes: tail den alley cub garbage night
ice skating: rink blade glove spin balance cold
a cooking contest: judge recipe chef apron timer flavor
space tourism: rocket ticket orbit gravity window astronaut
a village festival: lantern drum parade dance square costume
the honey badger: claw snake fearless burrow desert fur
learning to type: keyboard finger speed screen error practice
a rooftop garden: tomato ladder soil city bees sunlight
winter clothing: coat glove wool scarf zipper boots
a ferry ride: island captain wave deck ticket horizon
carpooling: driver fuel traffic neighbor seat schedule
a pottery class: clay wheel kiln glaze bowl hands
"""


def _parse(block: str) -> dict[str, tuple[str, ...]]:
    rows = (line.split(":", 1) for line in block.strip().splitlines())
    return {topic.strip(): tuple(words.split()) for topic, words in rows}


TOPICS: dict[str, dict[str, tuple[str, ...]]] = {
    "train": _parse(_TRAIN),
    "development": _parse(_DEVELOPMENT),
    "heldout": _parse(_HELDOUT),
}
